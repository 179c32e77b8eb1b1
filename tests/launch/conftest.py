"""Stand-ins for what a launcher starts: a program that records how it was started."""

import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Writes what it was given to $RECORDS, then ends with STUB_STATUS times its id, or, with STUB_WAIT,
# waits for a signal, counts the signals of the next half second and ends with 130.
RECORDER = """
import json, os, pathlib, signal, sys, time
names = ("DSMOE_", "SLURM_", "SRUN_", "JAX_LOCAL", "CUDA_VISIBLE")
record = {
    "argv": sys.argv[1:],
    "env": {name: value for name, value in os.environ.items() if name.startswith(names)},
    "cores": sorted(os.sched_getaffinity(0)),
    "ignores_ctrl_c": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    "signals": [],
}
process = os.environ.get("DSMOE_PROCESS_ID", os.environ.get("SLURM_PROCID", "0"))
file = pathlib.Path(os.environ["RECORDS"], f"{process}.json")
def save():
    file.with_suffix(".new").write_text(json.dumps(record))
    file.with_suffix(".new").rename(file)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: record["signals"].append(number))
save()
if os.environ.get("STUB_WAIT"):
    while not record["signals"]:
        time.sleep(0.01)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        time.sleep(0.01)
    save()
    sys.exit(130)
sys.exit(int(os.environ.get("STUB_STATUS", "0")) * int(process))
"""

# Connects as a run does, then gathers every process's id and device count. Called as Python would
# be: -m dsmoe_jax.main and the flags.
PROBE = """
import pathlib, sys
from dsmoe_jax import main
options = main.parse(sys.argv[2:])
assert main.start_jax(options)
import jax
from jax.experimental import multihost_utils
gathered = multihost_utils.process_allgather(jax.numpy.array([jax.process_index()]))
pathlib.Path(options.workdir, f"{jax.process_index()}.txt").write_text(
    f"{jax.process_count()} {gathered.ravel().tolist()} {jax.device_count()}"
)
"""

CONFIG = """
from dsmoe_jax.config import schema
def get_config(variant):
    return schema.Experiment(
        dataset="stub",
        data=schema.DataConfig(),
        model=schema.MatcherConfig(),
        teacher=schema.TeacherConfig(),
    )
"""


def write_program(path: pathlib.Path, text: str) -> pathlib.Path:
    """Writes a Python program that can be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """No launcher, no GPUs, and a `python` that records; returns the folder that holds it."""
    for name in [*os.environ]:
        if name.startswith(("DSMOE_", "SLURM_", "JAX_", "PYTHON")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "records").mkdir()
    monkeypatch.setenv("RECORDS", str(tmp_path / "records"))
    programs = tmp_path / "bin"
    write_program(programs / "python", RECORDER)
    monkeypatch.setenv("PATH", f"{programs}:/usr/local/bin:/usr/bin:/bin")
    return programs


@pytest.fixture
def records(tmp_path: pathlib.Path) -> Callable[[], list[dict[str, Any]]]:
    """What the recorded processes were given, by process id."""

    def read() -> list[dict[str, Any]]:
        files = sorted((tmp_path / "records").glob("*.json"), key=lambda file: int(file.stem))
        return [json.loads(file.read_text()) for file in files]

    return read


@pytest.fixture
def probe(
    environment: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Makes `python` the probe, with one device a process; returns flags that it accepts."""
    (tmp_path / "stub.py").write_text(CONFIG)
    write_program(environment / "python", PROBE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    return [f"--config={tmp_path}/stub.py", f"--workdir={tmp_path}"]
