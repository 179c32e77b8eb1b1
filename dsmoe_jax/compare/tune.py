"""Search of hyper-parameters of a method or of a teacher on validation queries.

Owns the folder of a search, which is also that of its jobs (`compare/runner.py`):

    study.journal    Optuna's journal; `optuna-dashboard` shows it
    trials/<name>/   a trial's workdir, named by its setting
    trials.csv       every trial; trials.png: their scores by field; best.json: the best setting

Jobs are the trials' teacher, where what is searched learns from one, and workers, each of which
runs one trial after the other (`compare/search.py`).
"""

import dataclasses
import pathlib
from collections.abc import Callable

from dsmoe_jax import optional
from dsmoe_jax.compare import plan, processes, progress, runner, search


def run(request: search.Request, machine: processes.Machine) -> pathlib.Path:
    """Runs what is left of a search, one trial a worker; returns the file of the best setting.

    Raises:
      ValueError: On a bad request or configuration, without Optuna, when another process works on
        the search, or when a job fails.
      interrupt.InterruptedRunError: When asked to stop; what was done stays.
    """
    if request.num_trials < 1:
        raise ValueError(f"--trials: expected a number >= 1, got {request.num_trials}")
    optional.require("optuna", extra="tune", what="tune: ")
    folder = pathlib.Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with processes.lock(folder / "study.lock") as lock:
        if lock is None:
            raise ValueError(f"{folder}: another search works on it; wait for its end")
        study = search.Study(request)
        jobs = make_jobs(study, machine.workers) if len(study.ended()) < study.num_trials else []
        work = runner.Runner(jobs, folder)
        states = work.run(machine, watch=_make_watch(study))
        for state in states:
            if state.state == "failed":
                raise ValueError(f"{state.name} failed: {state.note}")
        return search.write_results(study)


def make_jobs(study: search.Study, workers: int) -> list[plan.Job]:
    """The teacher of a search, if its trials learn from one, and its workers."""
    request, seed = study.request, study.experiment.seed
    teacher = plan.System("teacher", "teacher", request.config, kind="teacher")
    found = [plan.Job(teacher, seed, request.overrides)] if study.is_taught else []
    needed = found[0].name if found else ""
    more = dataclasses.asdict(request)
    for number in range(workers):
        worker = plan.System(f"worker{number}", "worker", request.config, kind="search")
        found.append(plan.Job(worker, seed, request.overrides, teacher=needed, more=more))
    return found


def _make_watch(study: search.Study) -> Callable[[progress.View], None]:
    """Tells of every trial that comes to its end."""
    told = len(study.ended())

    def watch(view: progress.View) -> None:
        nonlocal told
        ended = sorted(study.ended(), key=lambda trial: str(trial.datetime_complete))
        for number, trial in enumerate(ended[told:], told + 1):
            best = max(trial.intermediate_values.values(), default=None)
            score = "none" if best is None else f"{100 * best:.1f} %"
            view.tell(
                f"{number} of {study.num_trials} trials {trial.user_attrs['end']}: validation "
                f"{study.score_name} {score} with {search.describe(trial.params)}"
            )
        told = len(ended)

    return watch
