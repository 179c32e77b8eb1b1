"""A whole run: prepare the data, train the teacher, distil the student, evaluate, report.

Owns the order of things and what each mode leaves in the workdir. Every part resumes from there:

    store/  config.json  checkpoints/<stage>/  metrics.jsonl  tensorboard/
    results.json  arrays.npz  figures/
"""

import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.run import report, stages
from dsmoe_jax.training import interrupt


def run(
    experiment: schema.Experiment, overrides: dict[str, Any], workdir: pathlib.Path, mode: str
) -> None:
    """Runs one mode of an experiment.

    Args:
      experiment: The resolved and validated configuration.
      overrides: Fields set on the command line, for the record.
      workdir: The run's folder; made if missing.
      mode: `all`, `prepare`, `teacher`, `student` or `evaluate`.

    Raises:
      ValueError: On bad data, or when a part needs one that is not there.
      stop_lib.InterruptedRunError: When asked to stop.
      train.DivergedError: When training diverges.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if experiment.data.raw_dir:
        experiment.data.raw_dir = str(pathlib.Path(experiment.data.raw_dir).expanduser())
    store_dir = pathlib.Path(experiment.data.store_dir or workdir / "store").expanduser()
    start_s = time.perf_counter()
    _prepare(experiment.data, store_dir)
    prepare_s = time.perf_counter() - start_s
    reporter = runlog.Reporter(workdir, is_main=jax.process_index() == 0)
    try:
        with interrupt.StopRequest() as stop:
            session = stages.Session(experiment, workdir, store_dir, reporter, stop, prepare_s)
            if jax.process_index() == 0:
                record = {"overrides": overrides, "config": fingerprint.as_dict(experiment)}
                runlog.replace_text(workdir / "config.json", json.dumps(record, indent=1) + "\n")
            session.describe()
            if mode in ("all", "teacher") and (session.needs_teacher or mode == "teacher"):
                session.train_teacher()
            if mode in ("all", "student"):
                session.train_student()
        if stop.requested:
            raise interrupt.InterruptedRunError("stopped; the same command resumes")
        # Nothing of a report can be saved half: a signal ends it at once.
        if mode in ("all", "evaluate"):
            report.write(session)
    finally:
        reporter.close()


def _prepare(data: schema.DataConfig, store_dir: pathlib.Path) -> None:
    """Prepares the data in process 0; the others wait, and end too when it could not."""
    if jax.process_count() == 1:
        data.prepare(str(store_dir))
        return
    prepared = False
    try:
        if jax.process_index() == 0:
            data.prepare(str(store_dir))
        prepared = True
    finally:
        prepared = bool(multihost_utils.broadcast_one_to_all(np.int32(prepared)))
    if not prepared:
        raise ValueError("process 0 could not prepare the data; its own message says why")
