"""Measurements that are kept, and the README's section of them.

Owns what a kept measurement says of its circumstances, and how the section is laid out: the lines
that each measurement printed, under the command that was given.
"""

import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
from typing import Any

PUBLISHED = pathlib.Path("docs/performance/records")
SECTION = "performance"
# Commands whose module is not that of their name in this package.
_MODULES = {
    "step": "dsmoe_jax.bench.step_time",
    "pipeline": "dsmoe_jax.bench.feeding",
    "evaluate": "dsmoe_jax.bench.search",
    "prepare": "dsmoe_jax.bench.preparation",
    "plan": "dsmoe_jax.capacity.estimate",
}
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


def section(folder: pathlib.Path) -> str:
    """The README's section of the records in a folder, in the order of their names.

    Raises:
      ValueError: When there is none.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"{folder}: expected measurements (*.json), found none")
    records = [json.loads(path.read_text()) for path in paths]
    lines = []
    for record in records:
        module = load(record["command"])
        command = shlex.join([record["command"], *record["arguments"]])
        lines += [f"$ python -m dsmoe_jax.bench {command}", *module.describe(record["found"]), ""]
    body = "\n".join(["```", *lines[:-1], "```"])
    machines = sorted({record["machine"] for record in records})
    days = sorted({record["date"] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{body}\n\nMade by `python -m dsmoe_jax.bench render`; {'; '.join(machines)}; {when}."
