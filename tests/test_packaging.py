"""What a user installs: the wheel's files and its metadata."""

import email
import pathlib
import zipfile
from collections.abc import Iterator

import pytest
from hatchling.builders import wheel

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel of this checkout, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    [path] = wheel.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_sample_with_its_licence_and_source(built: zipfile.ZipFile) -> None:
    names = set(built.namelist())
    for file in (ROOT / "dsmoe_jax" / "data" / "sample").iterdir():
        name = f"dsmoe_jax/data/sample/{file.name}"
        assert name in names
        assert built.read(name) == file.read_bytes()
    assert {"LICENSE.txt", "SOURCE.md"} <= {pathlib.PurePath(name).name for name in names}
    assert sum(name.endswith(".csv.gz") for name in names) >= 4


def test_wheel_holds_the_package_and_nothing_else(built: zipfile.ZipFile) -> None:
    names = {name for name in built.namelist() if ".dist-info/" not in name}
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("dsmoe_jax/**/*.py")}
    assert files <= names
    assert all(name.startswith("dsmoe_jax/") and "__pycache__" not in name for name in names)


def test_wheel_holds_both_licences(built: zipfile.ZipFile) -> None:
    licences = {
        name.partition("/licenses/")[2]: built.read(name).decode()
        for name in built.namelist()
        if ".dist-info/licenses/" in name
    }
    assert set(licences) == {"LICENSE", "dsmoe_jax/data/sample/LICENSE.txt"}
    assert "Apache License" in licences["LICENSE"]
    assert "Attribution-ShareAlike 4.0" in licences["dsmoe_jax/data/sample/LICENSE.txt"]


def test_metadata_has_the_command_and_exclusive_extras(built: zipfile.ZipFile) -> None:
    [metadata] = [name for name in built.namelist() if name.endswith(".dist-info/METADATA")]
    [entries] = [name for name in built.namelist() if name.endswith("entry_points.txt")]
    fields = email.message_from_bytes(built.read(metadata))
    assert fields["Requires-Python"] == ">=3.11"
    assert set(fields.get_all("Provides-Extra")) == {
        *("bench", "cpu", "cuda12", "dev", "docs", "peers", "tune")
    }
    required = fields.get_all("Requires-Dist")
    # Both own the module `faiss`, so neither may come with the other.
    [cpu] = [line for line in required if line.startswith("faiss-cpu")]
    [gpu] = [line for line in required if line.startswith("faiss-gpu")]
    assert cpu.endswith("extra == 'cpu'")
    assert gpu.endswith("extra == 'cuda12'")
    assert "dsmoe = dsmoe_jax.main:entry_point" in built.read(entries).decode()
