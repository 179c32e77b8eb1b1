"""What a user installs: the wheel's files, its metadata, and its commands in an empty folder."""

import email
import os
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator

import pytest
from hatchling.builders import wheel

from tests.e2e import commands

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
    assert {name for name in files if not name.startswith("dsmoe_jax/bench/")} <= names
    assert {f"dsmoe_jax/configs/{path.name}" for path in ROOT.glob("configs/*.py")} <= names
    assert "dsmoe_jax/py.typed" in names
    assert all(name.startswith("dsmoe_jax/") and "__pycache__" not in name for name in names)
    left_out = ("dsmoe_jax/bench/", "dsmoe_jax/docs/")
    assert not [name for name in names if name.startswith(left_out) or name.endswith(".json")]


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
        *("azure", "baselines", "bench", "cluster", "cpu", "cuda12", "daft", "dev", "docs", "gcs"),
        *("lancedb", "milvus", "onnx", "qdrant", "ray", "s3", "serve", "tune"),
    }
    links = dict(link.split(", ") for link in fields.get_all("Project-URL"))
    assert links == {"Paper": "https://arxiv.org/abs/2601.02368", "Data": "https://kuairand.com"}
    required = fields.get_all("Requires-Dist")
    # Both own the module `faiss`, so neither may come with the other.
    [cpu] = [line for line in required if line.startswith("faiss-cpu")]
    [gpu] = [line for line in required if line.startswith("faiss-gpu")]
    assert cpu.endswith("extra == 'cpu'")
    assert gpu.endswith("extra == 'cuda12'")
    assert "dsmoe = dsmoe_jax.main:entry_point" in built.read(entries).decode()


@pytest.fixture(scope="module")
def dsmoe(
    built: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the installed console script in an empty folder, without the checkout."""
    site, folder = (tmp_path_factory.mktemp(name) for name in ("site", "empty"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    more = ["--disable-pip-version-check", "--no-warn-script-location", "--target", str(site)]
    subprocess.run([*install, *more, str(built.filename)], check=True, cwd=folder)
    environment = {**os.environ, **commands.ENVIRONMENT, "PYTHONPATH": str(site)}

    def run(*arguments: str, as_module: bool = False) -> subprocess.CompletedProcess[str]:
        start = (sys.executable, "-m", "dsmoe_jax") if as_module else (str(site / "bin" / "dsmoe"),)
        return subprocess.run(
            [*start, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )

    where = [sys.executable, "-c", "import dsmoe_jax; print(dsmoe_jax.__file__)"]
    found = subprocess.run(where, cwd=folder, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(site))
    return run


def check(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_help_is_the_same_as_a_script_and_as_a_module(dsmoe: Callable) -> None:
    assert "dsmoe train --config kuairand:sample" in check(dsmoe("--help"))
    assert check(dsmoe("--help", as_module=True)) == check(dsmoe("--help"))


def test_installed_configurations_are_found_by_name_and_copied_for_own_data(
    dsmoe: Callable,
) -> None:
    assert "my_shop.py" in check(dsmoe("init", "my_shop"))
    # The file is a configuration; only its data are not there.
    done = dsmoe("prepare", "--config", "my_shop.py", "--config.data.raw_dir=nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.raw_dir: expected a folder with log.csv")


def test_installed_plan_needs_no_data(dsmoe: Callable) -> None:
    flags = ("--users=1e4", "--items=1e3", "--devices=2")
    assert "2 devices" in check(dsmoe("plan", *flags, "--config=kuairand:sample,dssm"))


def test_installed_comparison_lists_what_it_would_run(dsmoe: Callable) -> None:
    assert "dsmoe-seed0" in check(dsmoe("compare", "run", "all", "--list"))


def test_installed_package_trains_on_the_packaged_rows(dsmoe: Callable) -> None:
    small = [flag for flag in commands.SMALL if "max_epochs" not in flag and "batch" not in flag]
    output = check(
        dsmoe(
            *("train", "--config", "kuairand:sample", "--workdir=run", *small),
            *("--config.train.max_epochs=1", "--config.loss.distill_weight=0"),
            *("--config.eval.references=False", "--config.train.steps_per_dispatch=20"),
        )
    )
    results = pathlib.Path(output.splitlines()[-1].removeprefix("results: "))
    assert results == pathlib.Path("run/results.json")
    assert "student" in output
