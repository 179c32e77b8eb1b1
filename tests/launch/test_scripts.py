"""Every shell script parses, and those that are called by name can be executed."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name", ["launch/local.sh", "launch/ray-recommend.sh", "launch/slurm.sbatch", ".ci/run"]
)
def test_script_parses(name: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)


@pytest.mark.parametrize("name", ["launch/local.sh", "launch/ray-recommend.sh", ".ci/run"])
def test_script_is_executable(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)


def test_readme_names_every_launcher() -> None:
    text = (ROOT / "launch" / "README.md").read_text()
    files = {path.name for path in (ROOT / "launch").iterdir()} - {"README.md"}
    assert files == {
        *("local.sh", "slurm.sbatch", "jobset.yaml", "sky.yaml"),
        *("jobset-recommend.yaml", "ray-recommend.sh"),
    }
    assert all(f"`{name}`" in text for name in files)
