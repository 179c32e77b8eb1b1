"""Training loop of one stage: data, steps, logs, validation, early stopping, checkpoints.

Owns every side effect of training. A stage is a model, its optimiser and its validation; teacher
and student are stages of this one loop. What a step computes is in `train_step`.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import runlog
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline
from dsmoe_jax.training import (
    checkpoint,
    held,
    interrupt,
    optimizer,
    selection,
    sharding,
    step_metrics,
    streams,
    train_state,
    train_step,
)

# A mean task loss above this is divergence: an untrained model's BCE is at 0.69. Auxiliary losses
# have scales of their own, so that the total says nothing.
DIVERGED_LOSS = 100.0

Summary = dict[str, Any]


class DivergedError(Exception):
    """The loss is not finite or absurdly large."""


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What a stage learns from beside the labels."""

    teacher: train_step.Teacher  # The module that teaches
    frozen: train_state.Frozen  # Its parameters
    weight: float  # lambda
    warmup_epochs: int = 0  # First epochs with lambda = 0


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is trained, and how it is evaluated."""

    name: str  # `teacher`, `student`, ...
    model: nn.Module  # A matcher or a ranker
    updater: optimizer.Updater  # How its parameters are updated
    max_epochs: int  # Upper bound on passes over the examples
    patience: int  # Evaluations without a better score before the stage ends
    # Summary of a frozen state on validation queries, with `scenarios` and `macro` as in
    # results.json; None where nothing selects and the last epoch is kept.
    validate: Callable[[train_state.Frozen], Summary] | None
    score_name: str  # The macro metric that selects the epoch, e.g. `recall@50`
    # Fields of evaluation that the score depends on; scores of other fields are not compared.
    judged_by: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss_method: str = ""  # The model's method that gives the loss; empty for logits and their BCE
    logit_method: str = ""  # That which gives the loss's logits, where there is a teacher
    # Gives what an earlier stage trained, where no checkpoint is; None starts from initial
    # parameters.
    start_from: Callable[[], train_state.Frozen] | None = None
    # Makes the initial state that of an earlier run; it counts as the first epoch's, to be beaten.
    carry_over: Callable[[train_state.TrainState], train_state.TrainState] | None = None
    hold: held.Held | None = None  # What of a state stays as it is; None trains all
    last_only: bool = False  # Whether only the last example of every user is read
    # Seconds of training after which no further epoch begins; what is evaluated and kept is the
    # best state until then.
    max_train_s: float = math.inf
    # Computes the values of the model's `constants` collection.
    make_constants: Callable[[], dict[str, np.ndarray]] = dict
    keeps_last: bool = False  # Whether the last epoch is kept, whatever its score
    # Decay per step of the moving average that is evaluated and kept; 0 for none.
    average_decay: float = 0.0
    distillation: Distillation | None = None  # The teacher, if any
    loss: schema.LossConfig | None = None  # What is learned of which negatives; None as the paper


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all stages of a run share."""

    mesh: jax.sharding.Mesh  # The devices
    corpus: batch_lib.Items  # All items, on the devices; rows past the last item are padding
    source: pipeline.BatchSource  # The training batches
    key: jax.Array  # Random key of the run; a stage folds its name in
    num_negatives: int  # N
    steps_per_report: int  # Steps between two logged points
    steps_per_dispatch: int  # Steps that the devices take without the host
    every_steps: int  # Steps between two saves inside an epoch; 0 for none
    log: runlog.RunLog  # Where progress is logged
    stop: interrupt.Interrupt  # Whether the run was asked to end


def train_stage(
    stage: Stage, setting: Setting, checkpoints: checkpoint.StageCheckpoints
) -> tuple[train_state.TrainState, checkpoint.Progress]:
    """Trains a stage, from its latest checkpoint where there is one, and returns its best state.

    Raises:
      InterruptedRunError: After an interrupt, with the state saved.
      DivergedError: When the loss is not finite, or the task's absurdly large, naming the step and
        the last good checkpoint.
    """
    loop = _Loop(stage, setting, checkpoints)
    while not loop.is_done():
        loop.run_epoch()
    return loop.best()


class _Loop:
    """The mutable part of `train_stage`."""

    def __init__(
        self, stage: Stage, setting: Setting, checkpoints: checkpoint.StageCheckpoints
    ) -> None:
        self._stage, self._setting, self._checkpoints = stage, setting, checkpoints
        stage_key = jax.random.fold_in(setting.key, streams.of_stage(stage.name))
        init_key, self._step_key = jax.random.split(stage_key)
        averaged = stage.average_decay > 0
        self._like = train_state.abstract_state(
            stage.model, stage.updater, mesh=setting.mesh, averaged=averaged
        )
        for line in runlog.describe_parameters(stage.name, self._like.params):
            setting.log.line(line)
        # Either or: two states may not fit the devices.
        restored = checkpoints.resume(self._like, setting.mesh, setting.log.line)
        self._judged_by = {"score": stage.score_name, **stage.judged_by}
        if restored is not None:
            self._state, self._progress = restored
            setting.log.forget_after(stage.name, self._progress.step)
            setting.log.line(f"{stage.name}: resumes at step {self._progress.step}")
            self._judge_anew()
        else:
            self._progress = checkpoint.Progress(stage=stage.name)
            start = stage.start_from() if stage.start_from else None
            self._state = train_state.init_state(
                stage.model,
                stage.updater,
                key=init_key,
                mesh=setting.mesh,
                constants=stage.make_constants(),
                averaged=averaged,
            )
            if start is not None:
                self._state = train_state.start_from(self._state, start)
            if stage.carry_over is not None:
                self._state = stage.carry_over(self._state)
                self._keep_start()
        self._steps = self._compile_steps()
        self._epoch_key = init_key
        self._end_epoch = train_step.make_end_epoch(
            stage.model,
            setting.mesh,
            self._like,
            functools.partial(held.hold, held=stage.hold or {}),
        )
        # Steps before a group, their number, and their metrics, stacked.
        self._pending: list[tuple[int, int, train_step.Metrics]] = []
        self._reported_s = time.perf_counter()
        self._waited_s = 0.0

    def is_done(self) -> bool:
        progress, stage = self._progress, self._stage
        is_late = progress.epochs_evaluated > 0 and progress.train_s >= stage.max_train_s
        is_over = progress.epochs_evaluated >= stage.max_epochs
        return is_late or is_over or progress.bad_epochs >= stage.patience

    def best(self) -> tuple[train_state.TrainState, checkpoint.Progress]:
        self._checkpoints.wait()
        del self._state  # two states may not fit the devices
        best = self._checkpoints.restore_best(self._like, self._setting.mesh, self._progress)
        return best, self._progress

    def _keep_start(self) -> None:
        """Makes the state that training starts from the best so far."""
        score, summary = self._score(self._state)
        self._keep_best(score)
        self._checkpoints.best.wait()
        self._checkpoints.latest.save(self._state, self._progress)
        self._tell(summary, is_best=True)

    def _judge_anew(self) -> None:
        """Makes the best score so far one of this run's metric, where it was another's.

        A complete stage stays as it is: nothing is compared any more.
        """
        progress, stage, log = self._progress, self._stage, self._setting.log
        changed = selection.describe_changes(progress.judged_by, self._judged_by)
        if stage.validate is None or not changed:
            return
        if self.is_done():
            log.line(
                f"{stage.name}: complete; its epoch, chosen with other fields, stays: {changed}"
            )
            return
        del self._state  # two states may not fit the devices
        mesh = self._setting.mesh
        best = self._checkpoints.restore_best(self._like, mesh, progress)
        old, score = progress.best_score, self._score(best)[0]
        del best
        restored = self._checkpoints.latest.restore(self._like, mesh)
        assert restored is not None
        self._state = restored[0]
        progress.best_score, progress.judged_by = score, self._judged_by
        log.line(
            f"{stage.name}: validation changed ({changed}): the best state so far, of step "
            f"{progress.best_step}, is judged anew, {old:.4f} -> {score:.4f}"
        )

    def run_epoch(self) -> None:
        setting, progress, stage = self._setting, self._progress, self._stage
        per_epoch = setting.source.steps_per_epoch
        epoch = progress.epochs_evaluated
        end = (epoch + 1) * per_epoch
        taught = stage.distillation
        weight = taught.weight if taught and epoch >= taught.warmup_epochs else 0.0
        distill_weight = jnp.asarray(weight, jnp.float32)
        start_s = self._reported_s = time.perf_counter()
        setting.log.start_epoch(stage.name, epoch, per_epoch, progress.step - epoch * per_epoch)
        batches = pipeline.make_train_iterator(setting.source, start=progress.step)
        while progress.step < end:
            count = self._count_steps(end)
            group = self._fetch(batches, count)
            self._state, metrics = self._steps(
                self._state,
                taught.frozen if taught else None,
                setting.corpus,
                group,
                distill_weight,
                self._step_key,
                np.int32(count),
            )
            self._pending.append((progress.step, count, metrics))
            progress.step += count
            if progress.step % setting.steps_per_report == 0 or progress.step == end:
                self._report_pending()
            self._maybe_save(start_s, end)
        setting.log.end_epoch()
        if self._end_epoch is not None:
            key = jax.random.fold_in(self._epoch_key, epoch)
            self._state, found = self._end_epoch(self._state, key)
            values = {name: float(value) for name, value in found.items()}
            if values:
                setting.log.metrics(stage.name, progress.step, values)
        progress.example_s += time.perf_counter() - start_s
        self._finish_epoch()
        progress.train_s += time.perf_counter() - start_s
        # A run killed between the two finds the best state that the latest one names.
        self._checkpoints.best.wait()
        self._checkpoints.latest.save(self._state, progress)
        if setting.stop.reached(progress.step) and not self.is_done():
            self._stop()

    def _count_steps(self, end: int) -> int:
        """Steps to take at once: none passes a report, a save or the epoch's end."""
        setting, step = self._setting, self._progress.step
        stops = [end, step + setting.steps_per_dispatch]
        stops += [
            (step // every + 1) * every
            for every in (setting.steps_per_report, setting.every_steps)
            if every
        ]
        return min(stops) - step

    def _fetch(self, batches: Iterator[batch_lib.Batch], count: int) -> batch_lib.Batch:
        """The next batches, stacked, on the devices; counts the time that these were idle for them.

        Devices run behind the host, so a slow fetch costs nothing while they still work. Only at
        its end is it known whether they do; where they do not, all of the fetch counts: an upper
        bound.
        """
        start_s = time.perf_counter()
        group = [next(batches) for _ in range(count)]
        # Of one size, so that there is one program.
        group += group[-1:] * (self._setting.steps_per_dispatch - count)
        placed: batch_lib.Batch = sharding.put_batches(self._setting.mesh, group)
        # `jax.Array` does not declare `is_ready`, which every array has.
        last: Any = self._pending[-1][-1]["loss"] if self._pending else None
        if last is None or last.is_ready():
            self._waited_s += time.perf_counter() - start_s
        return placed

    def _compile_steps(self) -> train_step.Step:
        stage, setting = self._stage, self._setting
        taught = stage.distillation
        step = train_step.make_train_step(
            stage.model,
            stage.updater,
            num_items=stage.model.spec.num_items,
            num_negatives=setting.num_negatives,
            teacher=taught.teacher if taught else None,
            loss=stage.loss,
            average_decay=stage.average_decay,
            loss_method=stage.loss_method,
            logit_method=stage.logit_method,
        )
        step = held.hold(step, stage.hold) if stage.hold else step
        steps: train_step.Step = train_step.jit_step(
            train_step.make_steps(step, setting.steps_per_dispatch), setting.mesh, self._like
        )
        return steps

    def _report_pending(self) -> None:
        """Fetches the metrics of the steps since the last report: the loop's only wait."""
        if not self._pending:
            return
        fetched = step_metrics.fetch(self._pending)
        first = self._pending[0][0] + 1
        self._pending.clear()
        for step, metrics in enumerate(fetched, first):
            loss = float(metrics["loss"])
            task = float(metrics["loss_task"].sum() / metrics["rows"].sum())
            if not np.isfinite(loss) or task > DIVERGED_LOSS:
                self._raise_diverged(step, loss)
        values = step_metrics.average(fetched, self._stage.model.spec.scenarios)
        progress, setting = self._progress, self._setting
        now_s = time.perf_counter()
        elapsed_s = now_s - self._reported_s
        rate = len(fetched) * setting.source.batch_size / elapsed_s
        values["perf/examples_per_s"] = rate
        values["perf/data_wait_share"] = self._waited_s / elapsed_s
        self._reported_s, self._waited_s = now_s, 0.0
        setting.log.metrics(self._stage.name, progress.step, values)
        note = f"{step_metrics.describe(values)} {rate:,.0f} examples/s"
        setting.log.advance(len(fetched), note)

    def _raise_diverged(self, step: int, loss: float) -> None:
        setting, stage = self._setting, self._stage
        setting.log.end_epoch()
        self._checkpoints.wait()
        epoch, index = divmod(step - 1, setting.source.steps_per_epoch)
        good = self._checkpoints.latest.step
        saved = (
            f"the last good checkpoint is step {good} in {self._checkpoints.latest.path}"
            if good is not None
            else "no checkpoint was saved yet"
        )
        section = "teacher" if stage.name == "teacher" else "train"
        raise DivergedError(
            f"{stage.name}: the loss is {loss:g} at step {step} "
            f"(epoch {epoch + 1}, batch {index}); "
            f"{saved}; lower {section}.learning_rate"
        )

    def _maybe_save(self, start_s: float, end: int) -> None:
        setting, progress = self._setting, self._progress
        if progress.step == end:
            return
        stop = setting.stop.reached(progress.step)
        due = setting.every_steps and progress.step % setting.every_steps == 0
        if not (stop or due):
            return
        self._report_pending()
        elapsed_s = time.perf_counter() - start_s
        saved = dataclasses.replace(
            progress,
            train_s=progress.train_s + elapsed_s,
            example_s=progress.example_s + elapsed_s,
        )
        self._checkpoints.latest.save(self._state, saved)
        if stop:
            self._stop()

    def _stop(self) -> None:
        self._setting.log.end_epoch()
        self._checkpoints.wait()
        raise interrupt.InterruptedRunError(
            f"{self._stage.name}: stopped at step {self._progress.step}, state saved; the same "
            "command resumes"
        )

    def _finish_epoch(self) -> None:
        stage, progress, log = self._stage, self._progress, self._setting.log
        progress.epochs_evaluated += 1
        if stage.validate is None:
            # Nothing selects among epochs, so that only the last one's state is wanted.
            if self.is_done():
                progress.best_step = progress.step
                self._checkpoints.best.save(self._state, progress)
            log.line(f"{stage.name} epoch {progress.epochs_evaluated:>3}")
            return
        score, summary = self._score(self._state)
        is_best = stage.keeps_last or score > progress.best_score
        if is_best:
            self._keep_best(score)
        else:
            progress.bad_epochs += 1
        self._tell(summary, is_best)

    def _keep_best(self, score: float) -> None:
        progress = self._progress
        progress.best_score, progress.best_step, progress.bad_epochs = score, progress.step, 0
        progress.judged_by = self._judged_by
        self._checkpoints.best.save(self._state, progress)

    def _tell(self, summary: Summary, is_best: bool) -> None:
        progress, stage, log = self._progress, self._stage, self._setting.log
        log.metrics(stage.name, progress.step, selection.metrics(summary))
        mark = ("kept" if stage.keeps_last else "best") if is_best else ""
        log.line(selection.describe_epoch(progress, stage.score_name, summary, mark))

    def _score(self, state: train_state.TrainState) -> tuple[float, Summary]:
        """The score that selects epochs, and the summary that it is of."""
        assert self._stage.validate is not None
        summary = self._stage.validate(train_state.freeze(state))
        return summary["macro"][self._stage.score_name], summary
