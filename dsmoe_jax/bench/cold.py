"""Start-up time to the end of the first training step, with an empty and a warm compilation cache.

Owns the clock, which is outside: the product's own command runs unchanged on a store that is
prepared already, and what it prints and logs tells how far it is. When the first step is logged the
process is ended.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import Any

from dsmoe_jax import runlog
from dsmoe_jax.config import load
from dsmoe_jax.run import api

# What a line that the product prints says has ended, by its beginning or its end; in order.
MARKS = (
    ("imports, configuration, checking the store", "store "),
    ("opening the store, corpus to the devices", "devices: "),
    ("initial parameters", ": parameters, and MiB on each device with both Adam moments"),
)
LAST = "first step, compiled"
CACHES = ("empty", "warm")
_POLL_S = 0.01
_LIMIT_S = 600.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument(
        "--config", default="kuairand:sample", help="NAME or FILE[:variant], %(default)s if none"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of one empty and one warm start")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Starts the product's command again and again.

    A round is a start with an empty cache and one with the cache that it left, of the first stage
    that the configuration trains.
    """
    experiment = load.load_config(options.config)
    found: dict[str, list[dict[str, float]]] = {cache: [] for cache in CACHES}
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name:
        folder = pathlib.Path(name)
        # The preparation is not measured.
        store_dir = api.prepare(experiment, folder / "prepared")
        command = [sys.executable, "-m", "dsmoe_jax.main", "--config", options.config]
        command += [f"--config.data.store_dir={store_dir}", "--config.train.steps_per_report=1"]
        for number in range(options.rounds):
            for cache in CACHES:
                workdir = folder / f"{number}-{cache}"
                environment = {
                    **os.environ,
                    "JAX_COMPILATION_CACHE_DIR": str(folder / f"xla-{number}"),
                    "PYTHONUNBUFFERED": "1",
                }
                found[cache].append(
                    time_start([*command, f"--workdir={workdir}"], workdir, environment)
                )
    return {
        "config": options.config,
        "seconds": {
            cache: [sum(parts.values()) for parts in runs] for cache, runs in found.items()
        },
        "parts_s": {
            cache: {part: statistics.median(run[part] for run in runs) for part in runs[0]}
            for cache, runs in found.items()
        },
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    lines = [f"start to the end of the first training step, {found['config']}: seconds"]
    for cache, seconds in found["seconds"].items():
        lines.append(
            f"  {cache} compilation cache: {statistics.median(seconds):.1f} "
            f"[{min(seconds):.1f}, {max(seconds):.1f}]"
        )
        for part, part_s in found["parts_s"][cache].items():
            lines.append(f"    {part:<45} {part_s:6.1f}")
    return lines


def time_start(
    command: list[str], workdir: pathlib.Path, environment: dict[str, str]
) -> dict[str, float]:
    """Seconds of each part of one start; the process is killed after its first step.

    Raises:
      ValueError: When it ends before or passes no mark in ten minutes.
    """
    start_s = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed: list[tuple[float, str]] = []
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, printed), daemon=True)
    reader.start()
    try:
        while not runlog.read_points(workdir / runlog.METRICS_FILE):
            if process.poll() is not None or time.perf_counter() - start_s > _LIMIT_S:
                raise ValueError(f"{' '.join(command)}: ended before its first step")
            time.sleep(_POLL_S)
        end_s = time.perf_counter()
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
    parts: dict[str, float] = {}
    before_s = start_s
    for now_s, line in printed:
        if len(parts) < len(MARKS):
            part, text = MARKS[len(parts)]
            if line.startswith(text) or line.endswith(text):
                parts[part], before_s = now_s - before_s, now_s
    if len(parts) < len(MARKS):
        raise ValueError(f"expected a line with {MARKS[len(parts)][1]!r}, found none")
    return {**parts, LAST: end_s - before_s}


def _read(lines: Iterable[str], printed: list[tuple[float, str]]) -> None:
    for line in lines:
        printed.append((time.perf_counter(), line.rstrip()))
