"""Simulated devices: processes of this machine that each pretend to have several.

Owns the processes. The number of devices is fixed when JAX starts, so every number needs processes
of its own; those of one run find each other through a free port and talk by Gloo.
"""

import math
import multiprocessing
import multiprocessing.connection
import os
import socket
import time
from collections.abc import Callable
from typing import Any

# How long a process that has answered may take to leave by itself.
_GOODBYE_S = 10.0
_FLAG = "--xla_force_host_platform_device_count"


def run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    devices: int,
    processes: int = 1,
    limit_s: float = math.inf,
) -> list[Any]:
    """Calls a function in new processes that share simulated devices, so many in all.

    Returns:
      What the function returned, by process.

    Raises:
      ValueError: When the numbers do not fit, a process fails, with its message, or `limit_s`
        seconds were not enough.
    """
    if devices < 1 or processes < 1 or devices % processes:
        raise ValueError(
            f"devices: expected a multiple of the {processes} processes, got {devices}"
        )
    context = multiprocessing.get_context("spawn")
    coordinator = f"127.0.0.1:{_free_port()}" if processes > 1 else ""
    started, pipes = [], []
    try:
        for index in range(processes):
            pipe, remote = context.Pipe()
            place = (index, processes, devices // processes, coordinator)
            process = context.Process(
                target=_serve, args=(remote, place, function, arguments), daemon=True
            )
            process.start()
            # Held open here, it would keep the end of the process from being noticed.
            remote.close()
            started.append(process)
            pipes.append(pipe)
        return _receive(pipes, limit_s)
    except TimeoutError:
        for process in started:
            process.kill()
        raise ValueError(f"simulated devices: not done in {limit_s:.0f} s") from None
    finally:
        for process in started:
            process.join(_GOODBYE_S)
            # Not by SIGTERM, which a connected process takes for a wish to save its state.
            process.kill()
            process.join()


def _receive(pipes: list[Any], limit_s: float) -> list[Any]:
    found: dict[Any, Any] = {}
    end_s = time.monotonic() + limit_s
    while len(found) < len(pipes):
        left_s = None if math.isinf(limit_s) else max(0.0, end_s - time.monotonic())
        ready: list[Any] = multiprocessing.connection.wait(set(pipes) - set(found), left_s)
        if not ready:
            raise TimeoutError
        for pipe in ready:
            try:
                kind, value = pipe.recv()
            except EOFError:
                index = pipes.index(pipe)
                raise ValueError(f"process {index}: it ended; its own message says why") from None
            if kind == "error":
                raise ValueError(value)
            found[pipe] = value
    return [found[pipe] for pipe in pipes]


def _serve(
    pipe: multiprocessing.connection.Connection,
    place: tuple[int, int, int, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    index, processes, devices, coordinator = place
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if _FLAG not in flag]
    os.environ["XLA_FLAGS"] = " ".join([*kept, f"{_FLAG}={devices}"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    jax.config.update("jax_platforms", "cpu")
    if processes > 1:
        jax.distributed.initialize(
            coordinator, processes, index, cluster_detection_method="deactivate"
        )
    try:
        pipe.send(("found", function(*arguments)))
    except ValueError as error:
        pipe.send(("error", str(error)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
