"""Process of one job: reads what to do from a file, calls the library, ends with a status.

Owns the file's schema (`Task`), the job's lock while it runs, and systems without towers, which are
evaluated as a run evaluates a model. Which jobs there are is up to `plan.py`, their order to
`runner.py`.

    python -m dsmoe_jax.compare.job FILE
"""

import dataclasses
import importlib
import json
import os
import pathlib
import signal
import sys
import time
from typing import Any

from dsmoe_jax import main as command_line
from dsmoe_jax.baselines import builtin, catalogue
from dsmoe_jax.compare import hits, processes, records, search
from dsmoe_jax.compare.simulation import truth
from dsmoe_jax.config import load, schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import results, run

FILE = "job.json"


@dataclasses.dataclass(frozen=True)
class Task:
    """What a job's process is told, of its `plan.Job` and of its start.

    Attributes:
      overrides: Values of fields, those of the folders too.
      starter: Process that starts the job; the job is an orphan once that is gone.
      more: Further entries, of a search.
    """

    name: str
    kind: str
    system: str
    config: str
    overrides: dict[str, Any]
    lock: str
    starter: int
    more: dict[str, Any]


def write(path: pathlib.Path, task: Task) -> None:
    """Writes a job's file, into its workdir."""
    path.write_text(json.dumps(dataclasses.asdict(task), indent=1) + "\n")


def main(argv: list[str]) -> int:
    """Runs the job of a file; returns its status, that of the command line or `processes.TAKEN`."""
    path = pathlib.Path(argv[0])
    task = Task(**json.loads(path.read_text()))
    with processes.lock(pathlib.Path(task.lock)) as lock:
        if lock is None:
            return processes.TAKEN
        processes.sign(lock, task.starter)
        # Until a loop takes the signal over, being asked to end cleans up as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return command_line.exit_status(lambda: execute(task, path.parent))


def execute(task: Task, workdir: pathlib.Path) -> None:
    """Does what a task says, in its workdir.

    Raises:
      ValueError: On a bad configuration or bad data, or where a library is missing.
      interrupt.InterruptedRunError: When asked to stop.
      loop.DivergedError: When training diverges.
    """
    if task.kind == "scored":
        catalogue.require(task.system)
    experiment = load.load_config(task.config, task.overrides)
    command_line.start_jax()
    if task.kind == "search":
        search.work(search.Request(**task.more), task.overrides)
    elif task.kind in ("scored", "truth"):
        _evaluate_systems(task, experiment, workdir)
    else:
        mode = "teacher" if task.kind == "teacher" else "all"
        # Nobody serves a job of the comparison.
        experiment.checkpoint.bundle = False
        run.run(experiment, workdir, mode, overrides=task.overrides, handle_signals=True)


def _evaluate_systems(task: Task, experiment: schema.Experiment, workdir: pathlib.Path) -> None:
    """Evaluates systems without towers and writes their results.json."""
    experiment.data.prepare(experiment.data.store_dir)
    store = store_lib.Store.open(experiment.data.store_dir)
    start_s = time.perf_counter()
    found: list[builtin.Baseline]
    if task.kind == "truth":
        found = truth.evaluate(experiment, store)
    else:
        module = importlib.import_module(catalogue.SYSTEMS[task.system].module)
        found = module.evaluate_baselines(store, experiment.eval, seed=experiment.seed)
    record = results.describe(store, found[0].test)
    record["time_s"] = {"system": time.perf_counter() - start_s}
    if task.kind == "scored":
        record["versions"] |= catalogue.versions(task.system)
    record["systems"] = {}
    for system in found:
        parts = {**system.test.summarise(), "validation": system.validation.summarise()}
        summary = records.summarise(parts)
        record["systems"][system.name] = {**summary, "settings": system.settings}
    queries = {system.name: results.query_arrays(system.test) for system in found}
    hits.write(workdir / hits.FILE, task.name, queries)
    results.save(workdir / results.FILE, record)
    for system in found:
        metric = f"recall@{experiment.eval.k[0]}"
        value = record["systems"][system.name]["macro"][metric]
        print(f"{system.name}: test macro {metric} {100 * value:.1f} %, {system.settings}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main(sys.argv[1:]))
