import json

import pytest

from dsmoe_jax.config import fingerprint, load
from dsmoe_jax.run import results, workdir


@pytest.fixture
def written(tmp_path):
    experiment = load.load_config("kuairand:sample")
    workdir.write_config(experiment, tmp_path, {})
    return experiment


def test_a_configuration_is_read_back(written, tmp_path):
    found = workdir.read_config(tmp_path)
    assert fingerprint.as_dict(found) == fingerprint.as_dict(written)


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    made, before = tmp_path / "a" / "b", tmp_path / "c"
    before.mkdir()
    for folder in (made, before / "d", before):
        with pytest.raises(KeyError), workdir.make(folder):
            raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["c"]
    with pytest.raises(KeyError), workdir.make(made):
        (made / "config.json").touch()
        raise KeyError
    with workdir.make(before / "d"):
        pass
    assert made.is_dir() and (before / "d").is_dir()


def edit(change):
    def apply(content: bytes) -> bytes:
        record = json.loads(content)
        change(record)
        return json.dumps(record).encode()

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"[]",
        lambda content: content.replace(b"max_epochs", b"max_epocis"),
        lambda content: content.replace(b'"seed": 0', b'"seed": 1'),
        lambda content: b"\xff" + content,
        edit(lambda record: (record.pop("sha256"), record.pop("classes"))),
        edit(lambda record: (record.pop("sha256"), record["config"]["train"].update(no=1))),
    ],
)
def test_a_damaged_configuration_is_one_line_with_the_way_out(written, tmp_path, damage):
    path = tmp_path / workdir.CONFIG_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        workdir.read_config(tmp_path)
    assert str(caught.value).startswith(f"{path}: the file is damaged: ")
    assert str(caught.value).endswith(
        "run the training command again with the same --workdir, which writes it anew"
    )
    assert "\n" not in str(caught.value)


def test_a_configuration_from_before_it_had_a_hash_is_read(written, tmp_path):
    path = tmp_path / workdir.CONFIG_FILE
    path.write_bytes(edit(lambda record: record.pop("sha256"))(path.read_bytes()))
    assert workdir.read_config(tmp_path).seed == written.seed


@pytest.mark.parametrize("content", ["", "{", "7", "{}", '{"scenarios": {}}'])
def test_damaged_results_are_one_line_with_the_way_out(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"results.json: the file is damaged.*--mode evaluate"):
        results.read(path)
