"""The recipe with Ray Data, run as users run it, on a local Ray that is as small as it gets."""

import os
import signal
import subprocess
import sys
import tempfile

import polars as pl
import pytest

from dsmoe_jax.serving import retriever
from tests.e2e import commands
from tests.serving import small_bundle

# Ray on two cores and without what it does not need; then the recipe is the main program.
START = """
import runpy, sys
import ray
scratch, *sys.argv = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, _temp_dir=scratch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ENVIRONMENT = {
    "PYTHONPATH": str(commands.ROOT),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
LIMIT_S = 200
USERS, K = 30, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle, and a file of users some of whom are unknown."""
    folder = tmp_path_factory.mktemp("ray")
    small_bundle.write_bundle(folder / "bundle")
    pl.DataFrame({"user_id": range(1, USERS + 11)}).write_parquet(folder / "users.parquet")
    return folder


def recommend(folder, *flags):
    """Status and output of the recipe; it and all that it started ends in time or is ended."""
    recipe = str(commands.ROOT / "examples" / "ray_recommend.py")
    places = [str(folder / name) for name in ("bundle", "users.parquet", "lists")]
    # Ray's sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as scratch:
        process = subprocess.Popen(
            [sys.executable, "-c", START, scratch, recipe, *places, *flags],
            cwd=folder,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return process.returncode, output


def test_lists_of_all_batches_are_the_retrievers(folder):
    status, output = recommend(folder, "--k", str(K), "--batch_users", "8")
    assert status == 0, output
    got = pl.read_parquet(folder / "lists" / "*.parquet").sort("user_id", "scenario", "rank")
    served = retriever.Retriever.load(folder / "bundle")
    expected = served.recommend(list(range(1, USERS + 11)), "all", K)
    assert len(got) == (USERS + 10) * 3 * K
    assert got.equals(expected.sort("user_id", "scenario", "rank"))


# A second start of Ray, for one line.
@pytest.mark.slow
def test_workers_that_leave_no_core_are_refused(folder):
    status, output = recommend(folder, "--workers", "2")
    assert status != 0
    message = "workers: expected 1 to 1, one less than the 2 cores that Ray has, got 2"
    assert message in output.splitlines()[-1]
