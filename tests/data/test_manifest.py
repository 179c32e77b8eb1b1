import hashlib
import pathlib
import tomllib

import pytest

import dsmoe_jax
from dsmoe_jax.data import manifest as manifest_lib
from dsmoe_jax.data import store as store_lib
from tests.data import test_store

INPUTS = {"a.csv": {"bytes": 3, "sha256": "00"}}
SETTINGS = {"test_days": 2, "tabs": (1, 4)}


@pytest.fixture
def root(tmp_path):
    with store_lib.StoreWriter(tmp_path / "store") as writer:
        test_store.fill(writer)
    return tmp_path / "store"


def test_an_unchanged_preparation_differs_in_nothing(root):
    assert manifest_lib.differences(root, SETTINGS, INPUTS) == []


def test_every_difference_is_named(root):
    settings = {"test_days": 3, "new": True}
    inputs = {"b.csv": {"bytes": 3, "sha256": "00"}}
    assert manifest_lib.differences(root, settings, inputs) == [
        "new None -> True",
        "tabs [1, 4] -> None",
        "test_days 2 -> 3",
        "input a.csv changed",
        "input b.csv changed",
    ]


def test_a_store_of_another_version_of_the_package_is_reused(root, monkeypatch):
    monkeypatch.setattr(dsmoe_jax, "__version__", "9.9.9")
    assert manifest_lib.differences(root, SETTINGS, INPUTS) == []


def test_a_fingerprint_is_size_and_sha256(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"abc")
    assert manifest_lib.fingerprint([tmp_path / "x.csv"]) == {
        "x.csv": {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    }


def test_files_of_one_name_are_named_by_their_folders(tmp_path):
    paths = [tmp_path / name / "x.csv" for name in ("day=1", "day=2")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(path.parent.name.encode())
    found = manifest_lib.fingerprint(paths)
    assert {name: entry["bytes"] for name, entry in found.items()} == {
        "day=1/x.csv": 5,
        "day=2/x.csv": 5,
    }


def test_the_package_and_its_metadata_agree_on_the_version():
    root = pathlib.Path(__file__).parents[2]
    with (root / "pyproject.toml").open("rb") as stream:
        assert tomllib.load(stream)["project"]["version"] == dsmoe_jax.__version__
