"""Run: preparation of the data, teacher, distilled student, evaluation, report, bundle, in order.

Owns the order of things and what each mode leaves in the workdir. Every part resumes from there.
"""

import copy
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsmoe_jax import runlog
from dsmoe_jax.config import schema
from dsmoe_jax.run import export, report, stages
from dsmoe_jax.run import workdir as workdir_lib
from dsmoe_jax.training import interrupt


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
      mode: `all`, `prepare`, `teacher`, `student`, `evaluate` or `export`.
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
                workdir_lib.write_config(experiment, workdir, overrides or {})
            shared.describe()
            if mode in ("all", "teacher") and (shared.needs_teacher or mode == "teacher"):
                shared.train_teacher()
            if mode in ("all", "student"):
                shared.train_student()
        if stop.requested:
            raise interrupt.InterruptedRunError("stopped; the same command resumes")
        # Nothing of a report or a bundle can be saved half: a signal ends it at once.
        if mode in ("all", "evaluate"):
            report.write(shared)
        if mode == "export" or (mode == "all" and experiment.checkpoint.bundle):
            export.write(shared)
    finally:
        log.close()


def resolve(experiment: schema.Experiment) -> schema.Experiment:
    """A copy whose folder of raw files begins with no `~`."""
    experiment, data = copy.copy(experiment), copy.copy(experiment.data)
    if data.raw_dir:
        data.raw_dir = str(pathlib.Path(data.raw_dir).expanduser())
    experiment.data = data
    return experiment


def prepare(experiment: schema.Experiment, workdir: pathlib.Path) -> pathlib.Path:
    """Prepares the data in process 0; the others wait, and end too when it could not.

    Returns:
      The folder of the store.
    """
    store_dir = workdir_lib.store_folder(experiment, workdir)
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
