"""Run: preparation of the data, teacher, distilled student, evaluation, report, bundle, in order.

Owns the order of things and what each mode leaves in the workdir. Every part resumes from there.
"""

import contextlib
import copy
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsmoe_jax import runlog
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import continuation, drift, export, lock, report, sizes, stages
from dsmoe_jax.run import workdir as workdir_lib
from dsmoe_jax.training import interrupt


def run(
    experiment: schema.Experiment,
    workdir: pathlib.Path,
    mode: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    handle_signals: bool = False,
    continue_from: pathlib.Path | None = None,
    anew: bool = False,
) -> schema.Experiment:
    """Runs one mode of an experiment.

    Args:
      experiment: The validated configuration; it is not changed.
      workdir: The run's folder; made if missing.
      mode: `all`, `prepare`, `teacher`, `student`, `evaluate` or `export`.
      overrides: Fields that differ from the configuration file, for the record; they count as set
        where `experiment.by_size` fills those that are not.
      handle_signals: Whether SIGTERM and Ctrl-C save the state of training and end the run.
      continue_from: Folder of a finished run to go on from, see `continuation.py`; None goes on
        from what the workdir was begun with, if from any.
      anew: Whether a whole run that goes on from another also trains a model anew, for the report.

    Returns:
      The experiment as it ran.

    Raises:
      ValueError: On bad data, when a part needs one that is not there, and, before anything is
        written, when another run works in the folder or its checkpoints are of other fields.
      interrupt.InterruptedRunError: When asked to stop.
      loop.DivergedError: When training diverges.
    """
    experiment, overrides = resolve(experiment), overrides or {}
    is_main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        begin = functools.partial(
            _begin, experiment, workdir, mode, stack, overrides, continue_from
        )
        _in_main_process(begin, "begin")
        continued, experiment = continuation.find(experiment, workdir, None, overrides)
        if anew and continued is None:
            raise ValueError("--anew: expected --continue_from beside it, got none")
        start_s = time.perf_counter()
        store_dir = prepare(experiment, workdir)
        prepare_s = time.perf_counter() - start_s
        log = runlog.RunLog(workdir, is_main=is_main)
        stack.callback(log.close)
        if experiment.by_size:
            experiment = _fill(experiment, workdir, mode, store_dir, log, overrides)
        with interrupt.Interrupt(handle_signals) as stop:
            shared = stages.Stages(experiment, workdir, store_dir, log, stop, prepare_s, continued)
            if mode != "prepare":
                drift.check_data(experiment, workdir, mode, shared.store.data_hash)
            if is_main:
                workdir_lib.write_config(experiment, workdir, overrides)
            shared.describe()
            if mode in ("all", "teacher") and (shared.needs_teacher or mode == "teacher"):
                shared.train_teacher()
            if mode in ("all", "student"):
                shared.train_student()
        if stop.requested:
            raise interrupt.InterruptedRunError("stopped; the same command resumes")
        if anew and mode == "all":
            _train_anew(experiment, workdir, store_dir, handle_signals)
        # Nothing of a report or a bundle can be saved half: a signal ends it at once.
        if mode in ("all", "evaluate"):
            report.write(shared)
        if mode == "export" or (mode == "all" and experiment.checkpoint.bundle):
            export.write(shared)
    return experiment


def _begin(
    experiment: schema.Experiment,
    workdir: pathlib.Path,
    mode: str,
    stack: contextlib.ExitStack,
    given: Mapping[str, Any],
    continue_from: pathlib.Path | None,
) -> None:
    """Refuses a run before it writes anything: of a folder in use, and of other fields."""
    stack.enter_context(workdir_lib.make(workdir))
    stack.enter_context(lock.hold(workdir))
    continued, experiment = continuation.find(experiment, workdir, continue_from, given)
    unknown = sizes.unset(experiment, given) if experiment.by_size else ()
    drift.check_fields(experiment, workdir, mode, unknown=unknown)
    if continued is not None:
        continued.write(workdir)


def _train_anew(
    experiment: schema.Experiment,
    workdir: pathlib.Path,
    store_dir: pathlib.Path,
    handle_signals: bool,
) -> None:
    """Trains and evaluates the same model on the same data from initial parameters."""
    fresh = copy.deepcopy(experiment)
    fresh.continued_from, fresh.train.hold_items = "", False
    fresh.data.store_dir = str(store_dir)
    fresh.checkpoint.bundle = fresh.eval.references = False
    run(fresh, workdir / report.ANEW, "all", handle_signals=handle_signals)


def _fill(
    experiment: schema.Experiment,
    workdir: pathlib.Path,
    mode: str,
    store_dir: pathlib.Path,
    log: runlog.RunLog,
    given: Mapping[str, Any],
) -> schema.Experiment:
    """The experiment with values by the size of the prepared data, see `sizes.fill`.

    Raises:
      ValueError: When the data, or then the values, are not those of the checkpoints.
    """
    store = store_lib.Store.open(store_dir)
    if mode != "prepare":
        drift.check_data(experiment, workdir, mode, store.data_hash)
    positives = sum(entry["examples"] for entry in store.manifest["split"].values())
    filled, values = sizes.fill(experiment, positives, store.manifest["counts"]["items"], given)
    filled.validate()
    drift.check_fields(filled, workdir, mode)
    log.line(sizes.describe(values, positives))
    return filled


def resolve(experiment: schema.Experiment) -> schema.Experiment:
    """A copy whose folder of raw files, if it is no address, begins with no `~`."""
    experiment, data = copy.copy(experiment), copy.copy(experiment.data)
    if data.raw_dir and "://" not in data.raw_dir:
        data.raw_dir = str(pathlib.Path(data.raw_dir).expanduser())
    experiment.data = data
    return experiment


def prepare(experiment: schema.Experiment, workdir: pathlib.Path) -> pathlib.Path:
    """Prepares the data in process 0; the others wait, and end too when it could not.

    Returns:
      The folder of the store.
    """
    store_dir = workdir_lib.store_folder(experiment, workdir)
    _in_main_process(lambda: experiment.data.prepare(str(store_dir)), "prepare the data")
    return store_dir


def _in_main_process(work: Callable[[], None], what: str) -> None:
    """Does work in process 0; the others wait, and end too when it could not be done."""
    done = False
    try:
        if jax.process_index() == 0:
            work()
        done = True
    finally:
        if jax.process_count() > 1:
            done = bool(multihost_utils.broadcast_one_to_all(np.int32(done)))
    if not done:
        raise ValueError(f"process 0 could not {what}; its own message says why")
