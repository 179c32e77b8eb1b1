"""The cells of the README's results table: one per row and seed, each a run of the command line.

Owns which cells are missing and how they are run, one after another; a killed list continues where
it stopped, since every run resumes. A record is the cell's results.json, reference rows included,
and stays current while the configuration does; those of the comparison, which `work_list.py` runs,
keep hits per query instead and name the code they were made by.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import tqdm

from dsmoe_jax import identity, main, report
from dsmoe_jax.suite import rows


def run_all(
    table: tuple[rows.Row, ...], folder: pathlib.Path, seeds: int, published: pathlib.Path
) -> None:
    """Runs every cell that is missing or whose configuration changed.

    Args:
      table: The rows.
      folder: Where the cells' workdirs are.
      seeds: Seeds 0 to seeds - 1 are run.
      published: Folder of the finished cells' records.

    Raises:
      ValueError: When a cell's run fails, naming its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    published.mkdir(parents=True, exist_ok=True)
    cells = [(row, seed) for seed in range(seeds) for row in table]
    for row, seed in tqdm.tqdm(cells, desc="cells", unit="cell", disable=None):
        command = make_command(row, seed, folder)
        record = published / f"{cell_name(row, seed)}.json"
        if record.exists() and is_current(json.loads(record.read_text()), command):
            continue
        workdir = folder / cell_name(row, seed)
        workdir.mkdir(parents=True, exist_ok=True)
        log = workdir / "log.txt"
        with log.open("a") as file:
            done = subprocess.run(
                [sys.executable, "-m", "dsmoe_jax.main", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            raise ValueError(
                f"{log}: the cell {workdir.name} ended with status {done.returncode}; its last "
                "line says why"
            )
        found = json.loads((workdir / "results.json").read_text())
        report.replace_text(record, json.dumps(to_record(found)) + "\n")


def to_record(results: dict[str, Any]) -> dict[str, Any]:
    """What is published of a run's results: all but the parts that no table or study reads.

    The lists of cold items, and of the reference rows, which every run repeats, all but recall.
    """
    return {
        **_without(results, lambda name: name == "cold"),
        "references": _without(
            results["references"],
            lambda name: name == "cold" or name.startswith(("hit_rate@", "ndcg@")),
        ),
    }


def _without(value: Any, dropped: Callable[[str], bool]) -> Any:
    if isinstance(value, dict):
        return {name: _without(v, dropped) for name, v in value.items() if not dropped(name)}
    return value


def cell_name(row: rows.Row, seed: int) -> str:
    """Name of a cell's folder and record."""
    return f"{row.name}-seed{seed}"


def make_command(row: rows.Row, seed: int, folder: pathlib.Path) -> list[str]:
    """The arguments of a cell's run."""
    arguments = [
        f"--config={row.config}",
        f"--workdir={folder / cell_name(row, seed)}",
        f"--config.seed={seed}",
        *row.overrides,
    ]
    if row.teacher_of:
        teacher = folder / f"{row.teacher_of}-seed{seed}"
        arguments.append(f"--config.teacher.from_workdir={teacher}")
    return arguments


def is_current(record: dict[str, Any], command: list[str]) -> bool:
    """Whether a record was made by the configuration that the command resolves to today."""
    experiment = main.parse(["dsmoe_jax", *command]).experiment
    return bool(record["config_hash"] == identity.config_hash(experiment))
