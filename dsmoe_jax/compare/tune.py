"""Searches hyper-parameters of a method or of a teacher on validation queries, with Optuna.

Owns the folder of a study:

    study.journal    Optuna's journal; `optuna-dashboard` shows it
    store/           prepared data, shared by the trials
    teacher/         the workdir of their teacher, where what is searched learns from one
    trials/<name>/   a trial's workdir, named by its setting
    trials.csv       every trial; trials.png: their scores by field; best.json: the best setting

A trial is a run of the command line that trains one stage and ends: no test query is looked at. A
killed study tries the settings again that were running, in their workdirs, where their training
resumes.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from dsmoe_jax import main, optional, runlog
from dsmoe_jax.compare import processes, progress, search_results, search_space
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.training import interrupt

if TYPE_CHECKING:
    import optuna

_POLL_S = 0.2
# Trials before the first is compared with others, and epochs of a trial before it is.
_STARTUP_TRIALS = 4
_WARMUP_EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class Request:
    """What is searched.

    Attributes:
      config: `FILE:variant`.
      num_trials: Different settings to try, the configuration's own among them.
      folder: Of the study.
      workers: Trials at a time.
      flags: `--config.FIELD=VALUE` of every trial; a field that is set is not searched.
      stage: One of `search_space.STAGES`: whose fields are searched.
    """

    config: str
    num_trials: int
    folder: pathlib.Path
    workers: int
    flags: tuple[str, ...] = ()
    stage: str = "student"


@dataclasses.dataclass
class _Running:
    """A trial and its process, which may have to wait for one of a killed study."""

    trial: "optuna.Trial"
    name: str
    slot: int
    state: progress.CellState
    start_s: float
    process: subprocess.Popen | None = None
    best: float = -math.inf
    epochs: int = 0
    pruned: bool = False


def run(request: Request) -> pathlib.Path:
    """Runs what is left of a study and writes its results.

    Returns:
      The file of the best setting.

    Raises:
      ValueError: On a bad request or configuration, without Optuna, when another process works on
        the study, or when a trial fails for another reason than a loss that is not finite.
      stop_lib.InterruptedRunError: When asked to stop; what was done stays.
    """
    if request.num_trials < 1:
        raise ValueError(f"--trials: expected a number >= 1, got {request.num_trials}")
    optional.require("optuna", extra="tune", what="tune: ")
    request.folder.mkdir(parents=True, exist_ok=True)
    with processes.lock(request.folder / "study.lock") as lock:
        if lock is None:
            raise ValueError(f"{request.folder}: another search works on it; wait for its end")
        with interrupt.StopRequest() as stop:
            return _Search(request, stop).run()


class _Search:
    """A study while it runs."""

    def __init__(self, request: Request, stop: interrupt.StopRequest):
        self._request, self._stop = request, stop
        self._folder = request.folder
        self._arguments = (f"--config={request.config}", *request.flags)
        options = main.parse(["dsmoe_jax", *self._arguments])
        self._experiment: schema.Experiment = options.experiment
        self._experiment.validate()
        if request.stage == "teacher" and not self._experiment.loss.distill_weight:
            raise ValueError(
                "--stage teacher: expected a configuration that learns from a teacher, got "
                f"{request.config} with loss.distill_weight 0"
            )
        self._space = search_space.make(
            self._experiment, tuple(options.overrides), stage=request.stage
        )
        self._num_trials = min(request.num_trials, search_space.count(self._space))
        self._score_name = f"macro recall@{self._experiment.eval.k[0]}"
        self._study = self._open_study()
        self._tried: set[str] = set()
        self._states: list[progress.CellState] = []
        self._view = progress.View(self._states, request.workers, "trials")

    def run(self) -> pathlib.Path:
        (self._folder / "trials").mkdir(exist_ok=True)
        self._experiment.data.prepare(str(self._folder / "store"))
        if self._is_taught:
            self._train_teacher()
        self._take_up()
        with contextlib.ExitStack() as stack:
            stack.callback(self._view.clear)
            self._run_trials()
        return search_results.write(
            self._folder,
            self._study.get_trials(deepcopy=False),
            self._space,
            config=self._request.config,
            score_name=self._score_name,
        )

    @property
    def _is_taught(self) -> bool:
        """Whether the trials learn from a teacher."""
        return self._request.stage == "student" and self._experiment.loss.distill_weight > 0

    def _open_study(self) -> "optuna.Study":
        import optuna
        from optuna.storages import journal

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self._folder / "study.journal"
        # Another configuration or another space is another study in the same journal.
        content = json.dumps([fingerprint.as_dict(self._experiment), self._space], sort_keys=True)
        name = f"{self._request.config} {_digest(content)}"
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(journal.JournalFileBackend(str(path))),
            study_name=name,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(_STARTUP_TRIALS, _WARMUP_EPOCHS),
            load_if_exists=True,
        )

    def _take_up(self) -> None:
        """Learns what is done, and asks again for what a killed study was running."""
        import optuna

        states = optuna.trial.TrialState
        if not self._study.get_trials(deepcopy=False):
            own = {field: search_space.as_text(v[0]) for field, v in self._space.items()}
            self._study.enqueue_trial(own)
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == states.RUNNING:
                self._study.enqueue_trial(trial.params)
                self._study.tell(trial.number, state=states.FAIL)
            elif trial.state in (states.COMPLETE, states.PRUNED):
                self._tried.add(_name(trial.params))
                seconds = trial.user_attrs["seconds"]
                state = progress.CellState(_name(trial.params), "trial", "done", seconds)
                self._states.append(state)
        missing = self._num_trials - len(self._states)
        self._states += [progress.CellState("next", "trial") for _ in range(missing)]

    def _train_teacher(self) -> None:
        """Trains the trials' teacher to its end, or finds that it is."""
        workdir = self._folder / "teacher"
        workdir.mkdir(exist_ok=True)
        command = [*self._command(workdir), "--mode=teacher"]
        print(f"teacher: in {workdir}", flush=True)
        with processes.lock(workdir.with_suffix(".lock"), wait=True) as lock:
            assert lock is not None
            process = processes.start(command, workdir / "log.txt", slot=0, workers=1, lock=lock)
        while process.poll() is None:
            if self._stop.requested:
                processes.stop([process])
                raise interrupt.InterruptedRunError("stopped; the same command continues")
            time.sleep(_POLL_S)
        if process.returncode:
            raise ValueError(_failure("the teacher", workdir))

    def _command(self, workdir: pathlib.Path) -> list[str]:
        return [
            *(sys.executable, "-m", "dsmoe_jax.main", *self._arguments),
            f"--workdir={workdir}",
            f"--config.data.store_dir={self._folder / 'store'}",
        ]

    def _run_trials(self) -> None:
        running: list[_Running] = []
        try:
            self._work_off(running)
        finally:
            processes.stop([entry.process for entry in running if entry.process is not None])

    def _work_off(self, running: list[_Running]) -> None:
        """Runs trials until there are enough; `running` holds those that are not ended."""
        drawn_s = 0.0
        while len(self._tried) < self._num_trials or running:
            for entry in list(running):
                if entry.process is None:
                    self._start(entry)
                elif entry.process.poll() is not None:
                    running.remove(entry)
                    self._finish(entry)
            if self._stop.requested:
                raise interrupt.InterruptedRunError("stopped; the same command continues")
            free = set(range(self._request.workers)) - {entry.slot for entry in running}
            for slot in sorted(free):
                if len(self._tried) + len(running) < self._num_trials:
                    running.append(self._ask(slot, {entry.name for entry in running}))
            if time.perf_counter() - drawn_s > 1.0:
                drawn_s = time.perf_counter()
                for entry in running:
                    self._watch(entry)
                self._view.show()
            time.sleep(_POLL_S)

    def _ask(self, slot: int, running: set[str]) -> _Running:
        """A setting that was not tried yet: the sampler's, or any where it would repeat itself."""
        import optuna

        seen = self._tried | running
        # A sampler that starts again with its seed would draw its first settings again.
        seed = self._experiment.seed + len(self._study.get_trials(deepcopy=False))
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_STARTUP_TRIALS, constant_liar=True
        )
        trial = self._suggest()
        # What a killed study had asked for comes first and may be done by now.
        while _name(trial.params) in seen:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(self._draw(random.Random(seed), seen))
            trial = self._suggest()
        name = _name(trial.params)
        state = next(state for state in self._states if state.state == "left")
        state.name, state.state = name, "running"
        return _Running(trial, name, slot, state, time.perf_counter())

    def _suggest(self) -> "optuna.Trial":
        trial = self._study.ask()
        for field, choices in self._space.items():
            trial.suggest_categorical(field, [search_space.as_text(value) for value in choices])
        return trial

    def _draw(self, rng: random.Random, seen: set[str]) -> dict[str, str]:
        """A setting out of those that are left, all alike."""
        while True:
            drawn = {
                field: search_space.as_text(rng.choice(choices))
                for field, choices in self._space.items()
            }
            if _name(drawn) not in seen:
                return drawn

    def _start(self, entry: _Running) -> None:
        """Starts a trial's process, unless one of a killed study still works in its folder."""
        workdir = self._workdir(entry.name)
        workdir.mkdir(exist_ok=True)
        command = [*self._command(workdir), *search_space.as_flags(entry.trial.params)]
        if self._is_taught:
            command.append(f"--config.teacher.from_workdir={self._folder / 'teacher'}")
        command.append(f"--mode={self._request.stage}")
        with processes.lock(workdir.with_suffix(".lock")) as lock:
            if lock is not None:
                entry.process = processes.start(
                    command,
                    workdir / "log.txt",
                    slot=entry.slot,
                    workers=self._request.workers,
                    lock=lock,
                )

    def _watch(self, entry: _Running) -> None:
        """Looks at what a trial has done since; ends it where it is behind."""
        entry.state.seconds = time.perf_counter() - entry.start_s
        entry.state.note = processes.last_line(self._workdir(entry.name) / "log.txt")
        is_behind = self._report(entry)
        if is_behind and entry.process is not None and not entry.pruned:
            entry.pruned = True
            entry.process.terminate()

    def _report(self, entry: _Running) -> bool:
        """Tells the study the best score up to each new epoch; whether it was behind in one."""
        is_behind = False
        name = f"eval/{self._score_name.replace(' ', '/')}"
        workdir = self._workdir(entry.name)
        scores = runlog.read_scores(workdir, self._request.stage, name)
        for score in scores[entry.epochs :]:
            entry.best = max(entry.best, score)
            entry.trial.report(entry.best, entry.epochs)
            entry.epochs += 1
            is_behind |= bool(entry.trial.should_prune())
        return is_behind

    def _finish(self, entry: _Running) -> None:
        import optuna

        assert entry.process is not None
        workdir, status = self._workdir(entry.name), entry.process.returncode
        self._report(entry)
        entry.state.seconds = time.perf_counter() - entry.start_s
        diverged = status == 1 and processes.last_line(workdir / "log.txt").startswith("error: ")
        if status and not entry.pruned and not diverged:
            raise ValueError(_failure("a trial", workdir))
        entry.trial.set_user_attr("seconds", round(entry.state.seconds, 1))
        end = "diverged" if diverged else "ended early" if entry.pruned else "done"
        entry.trial.set_user_attr("end", end)
        if end == "done":
            self._study.tell(entry.trial, entry.best)
        else:
            self._study.tell(entry.trial, state=optuna.trial.TrialState.PRUNED)
        self._tried.add(entry.name)
        entry.state.state, entry.state.note = "done", ""
        shown = ", ".join(f"{f.rpartition('.')[2]} {v}" for f, v in entry.trial.params.items())
        score = f"{100 * entry.best:.1f} %" if entry.epochs else "none"
        self._view.tell(f"{end}: validation {self._score_name} {score} with {shown}")

    def _workdir(self, name: str) -> pathlib.Path:
        return self._folder / "trials" / name


def _name(setting: dict[str, str]) -> str:
    return _digest(json.dumps(setting, sort_keys=True))


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _failure(what: str, workdir: pathlib.Path) -> str:
    log = workdir / "log.txt"
    return f"{what} failed: {processes.last_line(log)} (see {log})"
