"""Two processes with two devices each against one process with four."""

import pathlib
import socket

import numpy as np
import pytest

from tests import compilation, tiny
from tests.e2e import commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("shared")
    tiny.write_store(made / "store")
    return made


def run(folder: pathlib.Path, processes: int, *failing: str, status: int = 0) -> list[str]:
    """Evaluates in so many processes, which have four devices together; what each of them said."""
    devices = f"--xla_force_host_platform_device_count={4 // processes}"
    flags = f"{compilation.XLA_FLAGS} {devices}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        commands.start_module(
            "tests.e2e.shared_evaluation",
            *map(str, (folder, processes, index, port, *failing)),
            XLA_FLAGS=flags,
        )
        for index in range(processes)
    ]
    return [commands.finish(process, status) for process in started]


def test_two_processes_give_the_evaluations_of_one_to_the_bit(folder):
    run(folder, 1)
    run(folder, 2)
    with np.load(folder / "1-0.npz") as expected:
        assert sum("log_loss" in name for name in expected) == 8
        for index in range(2):
            with np.load(folder / f"2-{index}.npz") as found:
                assert list(found) == list(expected)
                for name, value in expected.items():
                    np.testing.assert_array_equal(found[name], value, err_msg=name)
                    assert found[name].dtype == value.dtype, name


@pytest.mark.parametrize("what", ["judge", "read", "index"])
def test_both_end_when_one_cannot_evaluate_its_share(folder, what):
    first, second = run(folder, 2, what, status=1)
    assert (
        "ValueError: validation: process 1 could not evaluate its share of the queries: "
        "OSError: store: input/output error"
    ) in first
    assert "OSError: store: input/output error" in second
    assert "could not evaluate its share" not in second
