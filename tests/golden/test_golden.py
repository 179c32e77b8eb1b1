"""Every component's numbers are those of its version, and what keeps the two together."""

import json

import pytest

from dsmoe_jax.compare import numerics
from dsmoe_jax.models import registry
from tests.golden import golden


@pytest.mark.parametrize("component", sorted(golden.COMPUTE))
def test_numbers_are_those_of_the_version(component):
    record = golden.read(golden.FOLDER, component)
    golden.check_record(component, record, numerics.VERSIONS[component])
    golden.check_numbers(component, golden.compute(component), record)


def test_every_component_but_other_libraries_has_a_file():
    # Peers are other libraries, whose numbers are not ours to keep.
    golden.check_files(golden.FOLDER, numerics.VERSIONS, golden.EXTERNAL)
    assert set(golden.COMPUTE) == set(numerics.VERSIONS) - set(golden.EXTERNAL)


def test_every_method_and_peer_has_a_version():
    named = [*registry.MATCHERS, *registry.RANKERS, *golden.EXTERNAL]
    named += ["data", "training", "evaluation", "baselines"]
    assert len(set(named)) == len(named), "no name stands for two components"
    assert set(named) == set(numerics.VERSIONS)
    assert numerics.of(["star", "data", "data"]) == {
        name: numerics.VERSIONS[name] for name in ("data", "star")
    }
    with pytest.raises(KeyError):
        numerics.of(["unheard-of"])


@pytest.mark.parametrize("variant", ["default", "distilled", "none"])
def test_curves_fall_so_that_they_say_something(variant):
    curve = golden.read(golden.FOLDER, "dsmoe")["numbers"][f"curve: {variant}"]
    assert curve[-1] < curve[0]


OLD, NEW = {"a": [1.0, 2.0], "n": [3]}, {"a": [1.0, 2.1], "n": [3]}


@pytest.fixture
def folder(tmp_path):
    """A made-up component of version 2."""
    golden.update(tmp_path, "made_up", 1, OLD)
    golden.update(tmp_path, "made_up", 2, NEW)
    return tmp_path


def test_a_file_keeps_the_digests_of_all_versions(folder):
    record = golden.read(folder, "made_up")
    golden.check_record("made_up", record, 2)
    assert record["history"] == {"1": golden.digest(OLD), "2": golden.digest(NEW)}
    assert record["numbers"] == NEW


def test_equal_numbers_leave_the_file_alone(folder):
    before = (folder / "made_up.json").read_bytes()
    almost = {"a": [1.0, 2.1 * (1 + 1e-6)], "n": [3]}
    assert not golden.update(folder, "made_up", 2, almost)
    assert (folder / "made_up.json").read_bytes() == before


@pytest.mark.parametrize(
    ("version", "numbers", "message"),
    [
        (2, OLD, r"numbers of made_up moved: bump VERSIONS\['made_up'\] in .* then run this again"),
        (3, NEW, "numbers of made_up are unchanged: take the bump back"),
        (4, OLD, r"VERSIONS\['made_up'\]: expected 3, the next one, got 4"),
        (1, OLD, r"VERSIONS\['made_up'\]: expected 3, the next one, got 1"),
    ],
)
def test_numbers_and_version_change_together_or_not_at_all(folder, version, numbers, message):
    before = (folder / "made_up.json").read_bytes()
    with pytest.raises(golden.RefusedError, match=message):
        golden.update(folder, "made_up", version, numbers)
    assert (folder / "made_up.json").read_bytes() == before


def test_a_first_file_is_of_version_one(tmp_path):
    with pytest.raises(golden.RefusedError, match="expected 1, the next one, got 2"):
        golden.update(tmp_path, "made_up", 2, OLD)


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        ({"a": [1.0, 2.1 * (1 + 1e-3)], "n": [3]}, r"a: 1 of 2, first \[1\]"),
        ({"a": [1.0, 2.1], "n": [4]}, r"n: 1 of 1, first \[0\]: 4, expected 3"),
        ({"a": [1.0], "n": [3]}, "a: 1 numbers, expected 2"),
        ({"a": [1.0, 2.1]}, "n: only among the expected"),
        ({"a": [1.0, float("nan")], "n": [3]}, r"a: 1 of 2, first \[1\]: nan"),
        (NEW | {"b": [1]}, "b: only among the fresh"),
    ],
)
def test_other_numbers_are_refused_with_what_to_do(folder, fresh, message):
    record = golden.read(folder, "made_up")
    golden.check_numbers("made_up", NEW, record)
    with pytest.raises(golden.RefusedError, match=message) as error:
        golden.check_numbers("made_up", fresh, record)
    assert str(error.value).startswith(
        "numbers of made_up moved: if that is meant, bump VERSIONS['made_up'] in "
        "compare/numerics.py and run python -m tests.golden.golden made_up; records of the "
        "comparison made with the old version are then run anew"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"component": "other"}, "the file is of 'other'"),
        ({"version": 1}, "the file is of version 1, compare/numerics.py says 2"),
        ({"history": {"2": golden.digest(NEW)}}, r"history of versions \['2'\], not 1 to 2"),
        ({"numbers": OLD}, "the file was edited by hand"),
        (
            {"history": {"1": golden.digest(NEW), "2": golden.digest(NEW)}},
            "versions 1 and 2 have the same numbers",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(folder, changes, message):
    path = folder / "made_up.json"
    path.write_text(json.dumps(golden.read(folder, "made_up") | changes))
    with pytest.raises(golden.RefusedError, match=message):
        golden.check_record("made_up", golden.read(folder, "made_up"), 2)


def test_components_and_files_are_the_same(folder):
    golden.check_files(folder, {"made_up": 2, "peer": 1}, ("peer",))
    with pytest.raises(golden.RefusedError, match=r"without a file: \['peer'\]"):
        golden.check_files(folder, {"made_up": 2, "peer": 1}, ())
    with pytest.raises(golden.RefusedError, match=r"has numbers: \['made_up'\]"):
        golden.check_files(folder, {"peer": 1}, ("peer",))


def test_an_unknown_component_is_refused(capsys):
    assert golden.main(["unheard-of"]) == 1
    assert "got ['unheard-of']" in capsys.readouterr().out
