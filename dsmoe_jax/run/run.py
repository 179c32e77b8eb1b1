"""Run: preparation of the data, teacher, distilled student, evaluation and report, in order.

Owns the order of things and what each mode leaves in the workdir. Every part resumes from there:

    store/  config.json  checkpoints/<stage>/  metrics.jsonl  tensorboard/
    results.json  arrays.npz  figures/
"""

import copy
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint, restore, schema
from dsmoe_jax.run import report, stages
from dsmoe_jax.training import interrupt

CONFIG_FILE = "config.json"


def run(
    experiment: schema.Experiment,
    workdir: pathlib.Path,
    mode: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    handle_signals: bool = False,
) -> None:
    """Runs one mode of an experiment.

    Args:
      experiment: The validated configuration; it is not changed.
      workdir: The run's folder; made if missing.
      mode: `all`, `prepare`, `teacher`, `student` or `evaluate`.
      overrides: Fields that differ from the configuration file, for the record.
      handle_signals: Whether SIGTERM and Ctrl-C save the state of training and end the run.

    Raises:
      ValueError: On bad data, or when a part needs one that is not there.
      interrupt.InterruptedRunError: When asked to stop.
      loop.DivergedError: When training diverges.
    """
    experiment = resolve(experiment)
    workdir.mkdir(parents=True, exist_ok=True)
    start_s = time.perf_counter()
    store_dir = prepare(experiment, workdir)
    prepare_s = time.perf_counter() - start_s
    log = runlog.RunLog(workdir, is_main=jax.process_index() == 0)
    try:
        with interrupt.Interrupt(handle_signals) as stop:
            shared = stages.Stages(experiment, workdir, store_dir, log, stop, prepare_s)
            if jax.process_index() == 0:
                record = {
                    "overrides": dict(overrides or {}),
                    "config": fingerprint.as_dict(experiment),
                    "classes": restore.class_names(experiment),
                }
                runlog.replace_text(workdir / CONFIG_FILE, json.dumps(record, indent=1) + "\n")
            shared.describe()
            if mode in ("all", "teacher") and (shared.needs_teacher or mode == "teacher"):
                shared.train_teacher()
            if mode in ("all", "student"):
                shared.train_student()
        if stop.requested:
            raise interrupt.InterruptedRunError("stopped; the same command resumes")
        # Nothing of a report can be saved half: a signal ends it at once.
        if mode in ("all", "evaluate"):
            report.write(shared)
    finally:
        log.close()


def resolve(experiment: schema.Experiment) -> schema.Experiment:
    """A copy whose folder of raw files begins with no `~`."""
    experiment, data = copy.copy(experiment), copy.copy(experiment.data)
    if data.raw_dir:
        data.raw_dir = str(pathlib.Path(data.raw_dir).expanduser())
    experiment.data = data
    return experiment


def store_folder(experiment: schema.Experiment, workdir: pathlib.Path) -> pathlib.Path:
    """Where the prepared data of a run lie."""
    return pathlib.Path(experiment.data.store_dir or workdir / "store").expanduser()


def prepare(experiment: schema.Experiment, workdir: pathlib.Path) -> pathlib.Path:
    """Prepares the data in process 0; the others wait, and end too when it could not.

    Returns:
      The folder of the store.
    """
    store_dir = store_folder(experiment, workdir)
    prepared = False
    try:
        if jax.process_index() == 0:
            experiment.data.prepare(str(store_dir))
        prepared = True
    finally:
        if jax.process_count() > 1:
            prepared = bool(multihost_utils.broadcast_one_to_all(np.int32(prepared)))
    if not prepared:
        raise ValueError("process 0 could not prepare the data; its own message says why")
    return store_dir
