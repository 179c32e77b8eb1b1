import numpy as np
import pytest

from dsmoe_jax.bench import __main__ as command_line
from dsmoe_jax.bench import preparation
from tests.bench import small_run

ROWS = 40_000


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    flags = small_run.parse(preparation, f"--rows={ROWS}", "--rounds=1")
    return folder, preparation.run(flags, folder)


def test_both_preparations_write_the_same_arrays(found):
    folder, result = found
    assert set(result["seconds"]) == {"dsmoe_jax", "pandas"}
    names = {path.name for path in (folder / "pandas").glob("*.npy")}
    assert names == {path.name for path in (folder / "dsmoe_jax").glob("*.npy")}
    assert {"train.npy", "test_seen.npy", "vocabulary_brand.npy", "sequence_behavior.npy"} <= names
    train = np.load(folder / "pandas" / "train.npy")
    assert len(train) > 100


def test_rows_seconds_and_memory_are_told(found):
    _, result = found
    assert result["rows"]["impressions"] == ROWS
    assert all(peak > 2**20 for peak in result["peak_bytes"].values())
    lines = preparation.describe(result)
    assert lines[0].startswith("prepare, Alimama's format: 40,000 impressions")
    assert lines[2].endswith("x ours")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (np.array([1, 3]), "the two preparations differ"),
        (np.array([1]), "the two preparations differ"),
        (np.array([1, 2], np.int32), "the two preparations differ"),
        (None, "one has none"),
    ],
)
def test_a_difference_is_found(tmp_path, changed, message):
    for name, values in (("a", np.array([1, 2])), ("b", changed)):
        (tmp_path / name).mkdir()
        if values is not None:
            np.save(tmp_path / name / "train.npy", values)
    with pytest.raises(ValueError, match=rf"train\.npy: .*{message}"):
        preparation.check_equal(tmp_path / "a", tmp_path / "b")


def test_rounding_of_numbers_is_no_difference(tmp_path):
    for name, value in (("a", 1.0), ("b", 1.000001)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "items_dense.npy", np.array([value], np.float32))
    preparation.check_equal(tmp_path / "a", tmp_path / "b")


def test_what_lies_beside_the_generated_files_stays(tmp_path):
    # A folder named as a contestant's, as the package is in a checkout.
    kept = tmp_path / preparation.OURS / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    flags = ["prepare", "--rows=40000", "--rounds=1", "--without_pandas", f"--folder={tmp_path}"]
    assert command_line.main(flags) == 0
    assert kept.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {preparation.OURS, "raw"}


def test_too_few_rows_are_refused(capsys):
    assert command_line.main(["prepare", "--rows=10", "--without_pandas"]) == 2
    assert "--rows: expected at least 20,000 impressions, got 10" in capsys.readouterr().err
