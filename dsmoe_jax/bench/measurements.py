"""Published measurements, and what the documentation shows of them.

Owns what a kept measurement says of its circumstances, and how the page is laid out: the lines that
each measurement printed, under the command that was given.
"""

import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from dsmoe_jax.compare.report import formats, generated

PUBLISHED = pathlib.Path("docs/performance/records")
MAKER = "bench"
# Commands whose module is not that of their name in this package.
_MODULES = {
    "step": "dsmoe_jax.bench.step_time",
    "pipeline": "dsmoe_jax.bench.feeding",
    "evaluate": "dsmoe_jax.bench.search",
    "prepare": "dsmoe_jax.bench.preparation",
    "serving": "dsmoe_jax.bench.service_load",
    "plan": "dsmoe_jax.capacity.estimate",
}
# Their tables are shown by themselves, not as lines of a console.
_DEVICE, _DAILY = "device", "daily"
_VERSIONS = ("jax", "torch", "faiss-cpu", "polars", "pandas")


def load(command: str) -> Any:
    """The module of a measurement."""
    return importlib.import_module(_MODULES.get(command, f"dsmoe_jax.bench.{command}"))


def describe_machine() -> str:
    """Cores and versions of what was measured with."""
    versions = []
    for name in _VERSIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0))
    return f"{cores} {platform.machine()} cores, {', '.join(versions)}"


def make(command: str, arguments: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """A measurement with its circumstances, which JSON can hold."""
    return {
        "command": command,
        "arguments": arguments,
        "machine": describe_machine(),
        "date": datetime.date.today().isoformat(),
        "found": found,
    }


def blocks(folder: pathlib.Path) -> dict[str, Callable[[], generated.Block]]:
    """The blocks of the records in a folder.

    Raises:
      ValueError: When there is none.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"{folder}: expected measurements (*.json), found none")
    records = [json.loads(path.read_text()) for path in paths]
    return {
        "daily": lambda: generated.Block(show_days(records)),
        "device": lambda: generated.Block(show_devices(records)),
        "measurements": lambda: generated.Block(show_all(records)),
        "speed": lambda: generated.Block(summarise(records)),
    }


def summarise(records: Sequence[dict[str, Any]]) -> str:
    """Four numbers for the front page, as a list in Markdown."""
    first: dict[str, Any] = {}
    for record in records:
        first.setdefault(record["command"], record["found"])
    growth, prepare, plan = (first[c] for c in ("growth", "prepare", "plan"))
    steps = [record for record in records if record["command"] == "step"]
    # The first step, on every machine that it was measured on.
    ratios = sorted(
        min(entry["median"] for entry in record["found"]["ratio"]["dense"].values())
        for record in steps
        if record["arguments"] == steps[0]["arguments"]
    )
    ratio = " to ".join(f"{value:.2f}" for value in dict.fromkeys((ratios[0], ratios[-1])))
    on = f" on {len(ratios)} machines" if len(ratios) > 1 else ""
    tables = list(growth["step_ms"])
    slower = growth["ratio"][tables[-1]]["median"]
    rows = prepare["rows"]["impressions"]
    seconds = statistics.median(prepare["seconds"]["dsmoe_jax"])
    memory = prepare["peak_bytes"]["dsmoe_jax"] / 2**30
    return formats.bullets(
        [
            f"A training step: {ratio} times as fast as the fastest PyTorch twin of the model{on}.",
            f"Tables of {tables[-1]} in place of {tables[0]}, updated by rows: a step takes "
            f"{slower:.2f} times as long.",
            f"Preparing {rows:,} impressions of Alimama's format: {seconds:.1f} s, "
            f"{memory:.1f} GiB of memory.",
            f"{plan['users']:,} users and {plan['items']:,} items on {plan['devices']} devices: "
            f"{plan['total_bytes'] / 1e9:.1f} GB on each, planned from the compiled step, never "
            "run.",
        ]
    )


def show_all(records: Sequence[dict[str, Any]]) -> str:
    """The lines that each measurement printed, in the records' order, but for tables."""
    lines = []
    apart = (_DEVICE, _DAILY)
    records = [record for record in records if record["command"] not in apart]
    for record in records:
        module = load(record["command"])
        command = shlex.join([record["command"], *record["arguments"]])
        lines += [f"$ python -m dsmoe_jax.bench {command}", *module.describe(record["found"]), ""]
    body = "\n".join(["```", *lines[:-1], "```"])
    machines = sorted({record["machine"] for record in records})
    days = sorted({record["date"] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{body}\n\nMade by `python -m dsmoe_jax.bench render`; {'; '.join(machines)}; {when}."


def show_devices(records: Sequence[dict[str, Any]]) -> str:
    """The table of every accelerator that was measured, with its command and day."""
    parts = []
    for record in records:
        if record["command"] != _DEVICE:
            continue
        command = shlex.join([_DEVICE, *record["arguments"]])
        first, *rest = load(_DEVICE).describe(record["found"])
        parts.append(
            "\n".join(
                [
                    f"### {record['found']['device']['kind']}",
                    "",
                    f"`python -m dsmoe_jax.bench {command}`, {record['date']}: {first}",
                    *rest,
                ]
            )
        )
    return "\n\n".join(parts) or "No accelerator was measured yet."


def show_days(records: Sequence[dict[str, Any]]) -> str:
    """The table of every measurement of rolling days, with its command, machine and day."""
    parts = []
    for record in records:
        if record["command"] != _DAILY:
            continue
        command = shlex.join([_DAILY, *record["arguments"]])
        made = (
            f"Made by `python -m dsmoe_jax.bench {command}`; {record['machine']}; {record['date']}."
        )
        parts.append("\n".join([*load(_DAILY).describe(record["found"]), "", made]))
    return "\n\n".join(parts) or "Nothing was measured yet."
