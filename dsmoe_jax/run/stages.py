"""Training stages of a run: teacher, pretraining, student, and what they share.

Owns the way from a configuration to models, optimisers and validation, and the checkpoints of every
stage. The order of things is `run.py`'s.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.data import pipeline, statistics
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.models.ranking import ranker
from dsmoe_jax.run import calibration, continuation, earlier, inputs, results
from dsmoe_jax.training import (
    checkpoint,
    committee,
    interrupt,
    loop,
    optimizer,
    row_sparse,
    sharding,
    train_state,
)

# Which queries a sample holds does not depend on the run's seed: all runs are compared on the same.
QUERY_SEED = 0

Model = ranker.Ranker | two_tower.Matcher


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished stage: its best state and how it got there."""

    frozen: train_state.Frozen
    progress: checkpoint.Progress


class Stages:
    """The stages of one run, and what they share: data, devices, models, evaluators."""

    def __init__(
        self,
        experiment: schema.Experiment,
        workdir: pathlib.Path,
        store_dir: pathlib.Path,
        log: runlog.RunLog,
        stop: interrupt.Interrupt,
        prepare_s: float,
        continued: continuation.Continuation | None = None,
    ):
        """Opens the store and puts the corpus on the devices.

        `continued` is what the run goes on from, as `experiment.continued_from` names it.
        """
        self.continued = continued
        self.experiment, self.workdir = experiment, workdir
        self.log, self._stop, self.prepare_s = log, stop, prepare_s
        self.store = store_lib.Store.open(store_dir)
        self.spec = inputs.select_features(self.store, experiment)
        self.mesh = sharding.make_mesh()
        self.corpus: batch_lib.Items = sharding.put_rows(
            self.mesh,
            lambda rows: pipeline.read_corpus(self.store, self.spec, rows),
            self.spec.num_items,
        )
        self.matcher = experiment.model.make(self.spec)
        # What the method alone reads must not change a teacher, which several methods may share.
        of_teacher = inputs.select_features(self.store, experiment, for_teacher=True)
        self.ranker = experiment.teacher.model.make(of_teacher)

    @property
    def needs_teacher(self) -> bool:
        """Whether the student is distilled."""
        return self.experiment.loss.distill_weight > 0

    @functools.cached_property
    def earlier(self) -> earlier.Earlier:
        """The run that this one goes on from.

        Raises:
          ValueError: When it is not there any more.
        """
        assert self.continued is not None
        return earlier.Earlier(self.continued, self.store)

    @functools.cached_property
    def evaluate_matcher(self) -> evaluators.MatcherEvaluator:
        """The student's evaluator, compiled once per run."""
        return self.make_matcher_evaluator(self.store)

    def make_matcher_evaluator(self, store: store_lib.Store) -> evaluators.MatcherEvaluator:
        """An evaluator of the student on the queries of a store with the same items."""
        return evaluators.MatcherEvaluator(
            store, self.spec, self.corpus, self.matcher, self.experiment.eval, self.mesh
        )

    @functools.cached_property
    def evaluate_ranker(self) -> evaluators.RankerEvaluator:
        """The teacher's evaluator, compiled once per run."""
        return evaluators.RankerEvaluator(
            self.store, self.ranker.spec, self.corpus, self.ranker, self.experiment.eval, self.mesh
        )

    def describe(self) -> None:
        """Prints the data's counts, the split and the devices."""
        manifest, line = self.store.manifest, self.log.line
        counts = manifest["counts"]
        line(
            f"{manifest['dataset']}: {counts['users']:,} users, {counts['items']:,} items, "
            f"data {self.store.data_hash[:12]}, config {fingerprint.config_hash(self.experiment)}"
        )
        for split, entry in manifest["split"].items():
            days = entry["days"]
            zone = f"  {entry['time_zone']}" if "time_zone" in entry else ""
            line(f"  {split:<10} {days[0]} to {days[-1]}  {entry['examples']:>11,} positives{zone}")
        line(f"  {'scenario':<10} {'train':>11} {'validation':>11} {'test':>11}  (queries)")
        for name in self.spec.scenarios:
            row = [counts[key][name] for key in ("train", "validation_queries", "test_queries")]
            line(f"  {name:<10} {row[0]:>11,} {row[1]:>11,} {row[2]:>11,}")
        if beyond := [k for k in self.experiment.eval.k if k >= counts["items"]]:
            line(
                f"eval.k: {', '.join(map(str, beyond))} of {counts['items']:,} candidates finds "
                "every item, so that recall there says nothing; set smaller ones"
            )
        line(f"devices: {results.describe_devices()}, {jax.process_count()} process(es)")

    def train_teacher(self) -> Trained:
        """Trains or resumes the teacher, or takes it from another run."""
        if self.experiment.teacher.from_workdir:
            return self.load_teacher()
        return self._train(self.teacher_stage())

    def train_student(self) -> Trained:
        """Trains or resumes the student, after the stages that its method begins with.

        Raises:
          ValueError: When it is to be distilled and there is no trained teacher.
        """
        start_from: Callable[[], train_state.Frozen] | None = None
        teaching: list[train_state.Frozen] = []
        spent_s = 0.0
        for stage, kind in self._pretraining():
            begins = start_from if kind.is_start else None
            trained = self._train(dataclasses.replace(stage, start_from=begins))
            calibrate = functools.cache(functools.partial(self._calibrate, trained.frozen))
            start_from = calibrate if kind.is_start else start_from
            teaching += [calibrate()] if kind.is_teacher else []
            spent_s += trained.progress.train_s
        teacher = self.load_teacher().frozen if self.needs_teacher else None
        stage = self.student_stage(teacher)
        if teaching:
            stage = dataclasses.replace(stage, distillation=self._convene(teaching))
        return self._train(
            dataclasses.replace(
                stage, start_from=start_from, max_train_s=stage.max_train_s - spent_s
            )
        )

    def _convene(self, members: list[train_state.Frozen]) -> loop.Distillation:
        """Earlier stages of the student as its teacher."""
        objective = self.experiment.model.objective()
        return loop.Distillation(
            committee.Committee(self.matcher, objective.logit_method),
            committee.join(members),
            weight=objective.teacher_weight,
        )

    def _calibrate(self, frozen: train_state.Frozen) -> train_state.Frozen:
        """A pretrained student with the weight of its score chosen, where its method wants that."""
        experiment = self.experiment
        name, score_name = experiment.model.calibrated(), f"recall@{experiment.eval.k[0]}"
        if not name:
            return frozen

        def score(factor: float) -> float:
            scaled = calibration.scale(frozen, name, factor)
            found = self._validate(
                self.evaluate_matcher, scaled, experiment.eval.validation_queries
            )
            return float(found["macro"][score_name])

        found = calibration.climb(score)
        self.log.line(calibration.describe(found, score_name))
        return calibration.scale(frozen, name, calibration.choose(found))

    def load_teacher(self) -> Trained:
        """The best teacher of this workdir, or of the one the configuration names."""
        folder = self.experiment.teacher.from_workdir
        workdir = pathlib.Path(folder).expanduser() if folder else self.workdir
        return self._load(self.teacher_stage(), workdir)

    def load_student(self) -> Trained:
        """The best student of this workdir."""
        return self._load(self.student_stage(), self.workdir)

    def load_pretrained(self) -> list[Trained]:
        """The stages before the main one, in their order."""
        return [self._load(stage, self.workdir) for stage in self.pretraining_stages()]

    def teacher_stage(self) -> loop.Stage:
        """The teacher's stage."""
        per_scenario = self.experiment.eval.teacher_validation_queries
        return self._stage(
            "teacher",
            self.ranker,
            self.experiment.teacher,
            validate=lambda frozen: self._validate(self.evaluate_ranker, frozen, per_scenario),
        )

    def pretraining_stages(self) -> list[loop.Stage]:
        """The stages that the student's method begins with: none where a run goes on."""
        return [stage for stage, _ in self._pretraining()]

    def _pretraining(self) -> list[tuple[loop.Stage, schema.Pretraining]]:
        if self.experiment.continued_from:
            return []
        kinds = self.experiment.model.pretraining()
        return [(self._pretraining_stage(kind), kind) for kind in kinds]

    def _pretraining_stage(self, stage: schema.Pretraining) -> loop.Stage:
        train = self.experiment.train
        examples = len(pipeline.choose_examples(self.store, stage.last_only))
        per_epoch = max(1, examples // train.batch_size)
        epochs = max(stage.epochs, -(-stage.least_steps // per_epoch))
        return self._stage(
            stage.name,
            self.matcher,
            # Without L2: Adam makes full steps of it, where nothing else gives a gradient.
            dataclasses.replace(
                train,
                learning_rate=stage.learning_rate or train.learning_rate,
                weight_decay=0.0,
                max_epochs=epochs,
                patience=epochs,
                decay_epochs=epochs if stage.decays else 0,
                max_minutes=0.0,
            ),
            validate=None,
            loss_method=stage.loss_method,
            last_only=stage.last_only,
        )

    def student_stage(self, teacher: train_state.Frozen | None = None) -> loop.Stage:
        """The student's stage, distilled where there is a teacher."""
        experiment, distillation = self.experiment, None
        if teacher is not None:
            distillation = loop.Distillation(
                self.ranker,
                teacher,
                weight=experiment.loss.distill_weight,
                warmup_epochs=experiment.loss.distill_warmup_epochs,
            )
        objective, per_scenario = experiment.model.objective(), experiment.eval.validation_queries
        return self._stage(
            "student",
            self.matcher,
            experiment.train,
            validate=lambda frozen: self._validate(self.evaluate_matcher, frozen, per_scenario),
            loss_method=objective.loss_method,
            logit_method=objective.logit_method,
            last_only=objective.last_only,
            average_decay=experiment.train.average_decay,
            distillation=distillation,
            loss=experiment.loss,
        )

    def sample_queries(self, split: str, per_scenario: int | None) -> np.ndarray:
        """At most so many queries of every scenario, the same in every run; None takes all."""
        return protocol.sample_queries(self.store, split, per_scenario, QUERY_SEED)

    def _stage(
        self,
        name: str,
        model: Model,
        chosen: schema.TrainConfig | schema.TeacherConfig,
        *,
        last_only: bool = False,
        **more: Any,
    ) -> loop.Stage:
        max_epochs, decay_epochs = continuation.epochs(self.experiment, chosen)
        beta_2 = getattr(chosen, "beta_2", optimizer.BETA_2)
        queries = f"{'teacher_' * (name == 'teacher')}validation_queries"
        examples = len(pipeline.choose_examples(self.store, last_only))
        decay_steps = decay_epochs * (examples // self.experiment.train.batch_size)
        updater = row_sparse.make_updater(
            self.experiment.optim,
            model.spec,
            self.mesh,
            optimizer.make_schedule(chosen.learning_rate, decay_steps),
            chosen.weight_decay,
            beta_2,
        )
        stage = loop.Stage(
            name,
            model,
            updater,
            max_epochs=max_epochs,
            patience=chosen.patience,
            max_train_s=60 * chosen.max_minutes or math.inf,
            score_name=f"recall@{self.experiment.eval.k[0]}",
            judged_by={
                "eval.remove_seen": self.experiment.eval.remove_seen,
                f"eval.{queries}": getattr(self.experiment.eval, queries),
            },
            last_only=last_only,
            keeps_last=decay_epochs > 0,
            make_constants=lambda: statistics.make_constants(self.store, model.constant_shapes),
            **more,
        )
        if self.continued is None:
            return stage
        # The earlier run is opened where there is something to train, and not before.
        return dataclasses.replace(
            stage, carry_over=lambda fresh: self.earlier.carry_over(stage, self.mesh)(fresh)
        )

    def _validate(
        self,
        evaluate: evaluators.MatcherEvaluator | evaluators.RankerEvaluator,
        frozen: train_state.Frozen,
        per_scenario: int,
    ) -> loop.Summary:
        query_Q = self.sample_queries("validation", per_scenario)
        return evaluate(frozen, "validation", query_Q).summarise()

    def make_untrained(self, stage: loop.Stage) -> train_state.TrainState:
        """A stage's state with initial parameters that no run starts from."""
        return train_state.init_state(
            stage.model,
            stage.updater,
            key=jax.random.key(0),
            mesh=self.mesh,
            constants=stage.make_constants(),
            averaged=stage.average_decay > 0,
        )

    def carry_over(self, stage: loop.Stage) -> train_state.Frozen:
        """The earlier run's model of a stage, to which ids that it did not see are unknown."""
        carry = self.earlier.carry_over(stage, self.mesh, keeps_fresh=False)
        return train_state.freeze(carry(self.make_untrained(stage)))

    def _train(self, stage: loop.Stage) -> Trained:
        experiment = self.experiment
        if experiment.train.hold_items and stage.name == "student":
            stage = dataclasses.replace(stage, hold=self.earlier.hold(stage, self.mesh))
        setting = loop.Setting(
            mesh=self.mesh,
            corpus=self.corpus,
            source=pipeline.BatchSource(
                self.store,
                stage.model.spec,
                seed=experiment.stage_seed(stage.name),
                batch_size=experiment.train.batch_size,
                max_epochs=stage.max_epochs,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                last_only=stage.last_only,
                share=stage.loss.share if stage.loss else "",
            ),
            key=jax.random.key(experiment.stage_seed(stage.name)),
            num_negatives=experiment.train.num_negatives,
            steps_per_report=experiment.train.steps_per_report,
            steps_per_dispatch=experiment.train.steps_per_dispatch,
            every_steps=experiment.checkpoint.every_steps,
            log=self.log,
            stop=self._stop,
        )
        with self._open_checkpoints(stage, self.workdir) as checkpoints:
            state, progress = loop.train_stage(stage, setting, checkpoints)
        return Trained(train_state.freeze(state), progress)

    def _load(self, stage: loop.Stage, workdir: pathlib.Path) -> Trained:
        like = train_state.abstract_state(
            stage.model, stage.updater, mesh=self.mesh, averaged=stage.average_decay > 0
        )
        with self._open_checkpoints(stage, workdir) as checkpoints:
            progress = checkpoints.latest.progress()
            if progress is None or not checkpoint.is_trained(progress):
                raise ValueError(
                    f"{workdir}: expected a trained {stage.name}, found none; run --mode "
                    f"{stage.name} first"
                )
            best = checkpoints.restore_best(like, self.mesh, progress)
        return Trained(train_state.freeze(best), progress)

    def _open_checkpoints(
        self, stage: loop.Stage, workdir: pathlib.Path
    ) -> contextlib.closing[checkpoint.StageCheckpoints]:
        fields = fingerprint.of_stage(self.experiment, stage=stage.name)
        fields["data_hash"] = self.store.data_hash
        return contextlib.closing(checkpoint.StageCheckpoints(workdir, stage.name, fields))
