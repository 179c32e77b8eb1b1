"""Study of a hyper-parameter search: its space, trials, workers that run and prune them, results.

Owns the fields that methods share and the values to choose from; one that a method lacks is left
out, and its own stand in its file, as `MatcherConfig.search_space` or `RankerConfig.search_space`.
Owns the journal that workers share, which setting is tried next, a trial from its first epoch to
its end, and the table, figure and best setting. No test query is looked at. A trial whose worker
was killed is tried again by any other one, in its workdir, where its training resumes.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from dsmoe_jax import runlog
from dsmoe_jax.compare import processes
from dsmoe_jax.compare.report import formats, sweeps
from dsmoe_jax.config import fingerprint, load, schema
from dsmoe_jax.run import stages
from dsmoe_jax.training import interrupt, loop

if TYPE_CHECKING:
    import optuna

# Trials before the first is compared with others, and epochs of a trial before it is.
STARTUP_TRIALS = 4
WARMUP_EPOCHS = 3
_POLL_S = 0.5
_HEADS = ("trial", "end", "score", "epochs", "seconds")
# Choices of a field by its path.
Space = dict[str, tuple[Any, ...]]

_LEARNING_RATES = (3e-4, 1e-3, 3e-3)
_WEIGHT_DECAYS = (0.0, 1e-6, 1e-5)
_INPUT_DROPOUTS = (0.0, 0.1, 0.3, 0.5)
_SHARED: dict[str, Space] = {
    "student": {
        "train.learning_rate": _LEARNING_RATES,
        "train.weight_decay": _WEIGHT_DECAYS,
        "model.input_dropout": _INPUT_DROPOUTS,
        "model.output_dim": (32, 64, 128),
    },
    "teacher": {
        "teacher.learning_rate": _LEARNING_RATES,
        "teacher.weight_decay": _WEIGHT_DECAYS,
        "teacher.model.input_dropout": _INPUT_DROPOUTS,
        "teacher.model.dropout": (0.0, 0.1, 0.3),
    },
}
STAGES = tuple(_SHARED)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is searched.

    Attributes:
      num_trials: Different settings to try, the configuration's own among them.
      overrides: Values of fields in every trial; a field that is set is not searched.
      stage: One of `STAGES`: whose fields are searched.
    """

    config: str
    num_trials: int
    folder: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    stage: str = "student"


class Study:
    """The trials of a request, shared by its workers."""

    def __init__(self, request: Request):
        """Opens the journal.

        Raises:
          ValueError: On a bad request or configuration.
        """
        import optuna
        from optuna.storages import journal

        self.request, self.folder = request, pathlib.Path(request.folder)
        self.experiment = load.load_config(request.config, request.overrides)
        if request.stage == "teacher" and not self.experiment.loss.distill_weight:
            raise ValueError(
                "--stage teacher: expected a configuration that learns from a teacher, got "
                f"{request.config} with loss.distill_weight 0"
            )
        self.space = make_space(self.experiment, tuple(request.overrides), stage=request.stage)
        # As they are written on the command line.
        self._choices = {
            field: optuna.distributions.CategoricalDistribution(
                [as_text(value) for value in values]
            )
            for field, values in self.space.items()
        }
        self.num_trials = min(request.num_trials, math.prod(map(len, self.space.values())))
        self.score_name = f"macro recall@{self.experiment.eval.k[0]}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Another configuration or another space is another study in the same journal.
        content = json.dumps([fingerprint.as_dict(self.experiment), self.space], sort_keys=True)
        backend = journal.JournalFileBackend(str(self.folder / "study.journal"))
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=f"{request.config} {_digest(content)}",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, WARMUP_EPOCHS),
            load_if_exists=True,
        )

    @property
    def is_taught(self) -> bool:
        """Whether the trials learn from a teacher."""
        return self.request.stage == "student" and self.experiment.loss.distill_weight > 0

    def trials(self) -> list["optuna.trial.FrozenTrial"]:
        """All trials so far."""
        return self._study.get_trials(deepcopy=False)

    def ended(self) -> list["optuna.trial.FrozenTrial"]:
        """The trials that came to an end."""
        return [trial for trial in self.trials() if trial.state.name in ("COMPLETE", "PRUNED")]

    def workdir(self, setting: Mapping[str, str]) -> pathlib.Path:
        """Of the trials of a setting."""
        return self.folder / "trials" / name_of(setting)

    def take(self, stack: contextlib.ExitStack) -> "optuna.Trial | None":
        """The next trial, with its setting's lock in the stack; None where there are enough."""
        import optuna

        (self.folder / "trials").mkdir(exist_ok=True)
        with processes.lock(self.folder / "ask.lock", wait=True):
            seen = self._take_up()
            if len(seen) >= self.num_trials:
                return None
            # A sampler that starts again with its seed would draw its first settings again.
            seed = self.experiment.seed + len(self.trials())
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True
            )
            trial = self._study.ask(dict(self._choices))
            # What a killed worker had asked for comes first and may be done by now.
            while name_of(trial.params) in seen:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                self._study.enqueue_trial(self._draw(random.Random(seed), seen))
                trial = self._study.ask(dict(self._choices))
            stack.enter_context(processes.lock(self._lock_path(trial.params), wait=True))
            return trial

    def tell(self, trial: "optuna.Trial", end: str, score: float, seconds: float) -> None:
        """Notes how a trial came to its end: done, ended early or diverged."""
        import optuna

        trial.set_user_attr("seconds", round(seconds, 1))
        trial.set_user_attr("end", end)
        if end == "done":
            self._study.tell(trial, score)
        else:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def _take_up(self) -> set[str]:
        """Settings that are done or running; asks again for those whose worker is gone."""
        import optuna

        trials, seen = self.trials(), set()
        if not trials:
            self._study.enqueue_trial({f: known.choices[0] for f, known in self._choices.items()})
        for trial in trials:
            if trial.state.name in ("COMPLETE", "PRUNED"):
                seen.add(name_of(trial.params))
            elif trial.state.name == "RUNNING":
                with processes.lock(self._lock_path(trial.params)) as lock:
                    # A worker lets go when it has told the end, perhaps since the trials were read.
                    if lock is None or self.trials()[trial.number].state.is_finished():
                        seen.add(name_of(trial.params))
                        continue
                self._study.enqueue_trial(trial.params)
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return seen

    def _draw(self, rng: random.Random, seen: set[str]) -> dict[str, str]:
        """A setting out of those that are left, all alike."""
        while True:
            drawn = {f: str(rng.choice(known.choices)) for f, known in self._choices.items()}
            if name_of(drawn) not in seen:
                return drawn

    def _lock_path(self, setting: Mapping[str, str]) -> pathlib.Path:
        return self.workdir(setting).with_suffix(".lock")


def make_space(
    experiment: schema.Experiment, fixed: tuple[str, ...] = (), *, stage: str = "student"
) -> Space:
    """The fields that a search of a stage tries, but fixed ones, each with its own value first.

    Raises:
      ValueError: When nothing is left to choose, or the method names a field that it lacks.
    """
    values = fingerprint.flatten(fingerprint.as_dict(experiment))
    prefix, model = {
        "student": ("model", experiment.model),
        "teacher": ("teacher.model", experiment.teacher.model),
    }[stage]
    own = {f"{prefix}.{name}": choices for name, choices in model.search_space.items()}
    for field in own:
        if field not in values:
            raise ValueError(
                f"{type(model).__name__}.search_space: expected names of its fields, "
                f"got {field.rpartition('.')[2]!r}"
            )
    space: Space = {}
    for field, choices in {**_SHARED[stage], **own}.items():
        if field in fixed or field not in values:
            continue
        value = values[field]
        # JSON knows no tuples.
        value = tuple(value) if isinstance(value, list) else value
        space[field] = (value, *(choice for choice in choices if choice != value))
    if not space:
        raise ValueError("tune: expected at least one field to choose, got all of them fixed")
    return space


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)


class _Pruning(runlog.RunLog):
    """Run log of a trial: tells the study every epoch's score, ends a trial that is behind."""

    def __init__(self, workdir: pathlib.Path, trial: "optuna.Trial", stage: str, score: str):
        super().__init__(workdir, is_main=True)
        self._workdir, self._trial, self._stage, self._score = workdir, trial, stage, score
        self.best, self._epochs = -math.inf, 0
        # Of a trial that is taken up again.
        self._report()

    def metrics(self, stage: str, step: int, values: dict[str, float]) -> None:
        super().metrics(stage, step, values)
        if stage == self._stage and self._score in values:
            self._report()
            if self._trial.should_prune():
                import optuna

                raise optuna.TrialPruned

    def _report(self) -> None:
        """Tells the best score up to each new epoch."""
        scores = runlog.read_scores(self._workdir, self._stage, self._score)
        for score in scores[self._epochs :]:
            self.best = max(self.best, score)
            self._trial.report(self.best, self._epochs)
            self._epochs += 1


def work(request: Request, folders: Mapping[str, Any]) -> None:
    """Runs trials until there are enough, those of other workers counted.

    Their `folders` are overrides that say where data and teacher are.

    Raises:
      ValueError: When a trial fails for another reason than a loss that is not finite.
      interrupt.InterruptedRunError: When asked to stop; its trial is tried again from there.
    """
    study = Study(request)
    while len(study.ended()) < study.num_trials:
        with contextlib.ExitStack() as stack:
            trial = study.take(stack)
            if trial is None:
                # What other workers run is taken up where one of them is killed.
                time.sleep(_POLL_S)
                continue
            _run(study, trial, folders)
        # Another setting is another program.
        clear: Callable[[], None] = jax.clear_caches
        clear()


def _run(study: Study, trial: "optuna.Trial", folders: Mapping[str, Any]) -> None:
    import optuna

    request, start_s = study.request, time.perf_counter()
    workdir = study.workdir(trial.params)
    workdir.mkdir(exist_ok=True)
    print(f"trial {trial.number}: {describe(trial.params)}", flush=True)
    score = f"eval/{study.score_name.replace(' ', '/')}"
    run_log = _Pruning(workdir, trial, request.stage, score)
    fields = {**request.overrides, **trial.params, **folders}
    try:
        train(load.load_config(request.config, fields), workdir, request.stage, run_log)
        end = "done"
    except optuna.TrialPruned:
        end = "ended early"
    except loop.DivergedError as error:
        print(error, flush=True)
        end = "diverged"
    finally:
        run_log.close()
    study.tell(trial, end, run_log.best, time.perf_counter() - start_s)


def train(
    experiment: schema.Experiment, workdir: pathlib.Path, stage: str, run_log: runlog.RunLog
) -> None:
    """Trains one stage to its end, from where an earlier call in the workdir stopped."""
    with interrupt.Interrupt() as stop:
        store_dir = pathlib.Path(experiment.data.store_dir)
        found = stages.Stages(experiment, workdir, store_dir, run_log, stop, prepare_s=0.0)
        found.train_teacher() if stage == "teacher" else found.train_student()


def write_results(study: Study) -> pathlib.Path:
    """Writes trials.csv, trials.png, trials.svg and best.json; returns the last.

    Raises:
      ValueError: When no trial ran to its end.
    """
    folder, space, score_name = study.folder, study.space, study.score_name
    trials, config = study.trials(), study.request.config
    # Of a setting that was tried again after the search had been killed, the last trial counts.
    ended = {str(t.params): _as_row(t, space) for t in trials if "end" in t.user_attrs}
    rows = list(ended.values())
    runlog.replace_text(folder / "trials.csv", formats.lines_to_csv([*_HEADS, *space], rows))
    scored = [row for row in rows if row["score"] is not None]
    title = f"validation {score_name} of {config}"
    sweeps.draw_search(folder / "trials", list(space), scored, title)
    done = [row for row in scored if row["end"] == "done"]
    if not done:
        raise ValueError(f"{folder}: every trial diverged; trials.csv has their settings")
    best = max(done, key=lambda row: row["score"])
    setting = {field: best[field] for field in space}
    found = {
        "config": config,
        "score": {f"validation {score_name}": best["score"]},
        "trials": len(rows),
        "setting": setting,
        "flags": [f"--config.{field}={text}" for field, text in setting.items()],
    }
    path = folder / "best.json"
    runlog.replace_text(path, json.dumps(found, indent=1) + "\n")
    return path


def _as_row(trial: "optuna.trial.FrozenTrial", space: Space) -> dict[str, Any]:
    scores = trial.intermediate_values
    return {
        "trial": trial.number,
        "end": trial.user_attrs["end"],
        "score": max(scores.values(), default=None),
        "epochs": len(scores),
        "seconds": trial.user_attrs["seconds"],
        **{field: trial.params[field] for field in space},
    }


def describe(setting: Mapping[str, Any]) -> str:
    """A setting in words, its fields by the last part of their paths."""
    return ", ".join(f"{field.rpartition('.')[2]} {value}" for field, value in setting.items())


def name_of(setting: Mapping[str, Any]) -> str:
    """Of a setting's workdir."""
    return _digest(json.dumps(setting, sort_keys=True))


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:12]
