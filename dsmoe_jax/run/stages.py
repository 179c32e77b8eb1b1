"""The stages of a run: what they share, how each is trained, and what was trained.

Owns the way from a configuration to models, optimisers and validation, and the checkpoints of every
stage. The order of things is `run.py`'s.
"""

import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features, runlog
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.data import pipeline, statistics
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.models.ranking import ranker
from dsmoe_jax.run import results
from dsmoe_jax.training import (
    checkpoint,
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


class Session:
    """The objects that the parts of a run share."""

    def __init__(
        self,
        experiment: schema.Experiment,
        workdir: pathlib.Path,
        store_dir: pathlib.Path,
        reporter: runlog.Reporter,
        stop: interrupt.StopRequest,
        prepare_s: float,
    ):
        """Opens the store and puts the corpus on the devices."""
        self.experiment, self.workdir = experiment, workdir
        self.reporter, self._stop, self.prepare_s = reporter, stop, prepare_s
        self.store = store_lib.Store.open(store_dir)
        self.spec = select_features(self.store, experiment)
        self.mesh = sharding.make_mesh()
        self.corpus: batch_lib.Items = sharding.put_rows(
            self.mesh,
            lambda rows: pipeline.read_corpus(self.store, self.spec, rows),
            self.spec.num_items,
        )
        self.matcher = experiment.model.make(self.spec)
        # What the method alone reads must not change a teacher, which several methods may share.
        of_teacher = select_features(self.store, experiment, for_teacher=True)
        self.ranker = experiment.teacher.model.make(of_teacher)

    @property
    def needs_teacher(self) -> bool:
        """Whether the student is distilled."""
        return self.experiment.loss.distill_weight > 0

    @functools.cached_property
    def evaluate_matcher(self) -> evaluators.MatcherEvaluator:
        """The student's evaluator, compiled once per run."""
        return evaluators.MatcherEvaluator(
            self.store, self.spec, self.corpus, self.matcher, self.experiment.eval, self.mesh
        )

    @functools.cached_property
    def evaluate_ranker(self) -> evaluators.RankerEvaluator:
        """The teacher's evaluator, compiled once per run."""
        return evaluators.RankerEvaluator(
            self.store, self.ranker.spec, self.corpus, self.ranker, self.experiment.eval, self.mesh
        )

    def describe(self) -> None:
        """Prints the data's counts, the split and the devices."""
        manifest, line = self.store.manifest, self.reporter.line
        counts = manifest["counts"]
        line(
            f"{manifest['dataset']}: {counts['users']:,} users, {counts['items']:,} items, "
            f"data {self.store.data_hash[:12]}, config {fingerprint.config_hash(self.experiment)}"
        )
        for split, entry in manifest["split"].items():
            days = entry["days"]
            line(f"  {split:<10} {days[0]} to {days[-1]}  {entry['examples']:>11,} positives")
        line(f"  {'scenario':<10} {'train':>11} {'validation':>11} {'test':>11}  (queries)")
        for name in self.spec.scenarios:
            row = [counts[key][name] for key in ("train", "validation_queries", "test_queries")]
            line(f"  {name:<10} {row[0]:>11,} {row[1]:>11,} {row[2]:>11,}")
        line(f"devices: {results.describe_devices()}, {jax.process_count()} process(es)")

    def train_teacher(self) -> Trained:
        """Trains or resumes the teacher, or takes it from another run."""
        teacher = self.experiment.teacher
        if teacher.from_workdir:
            return self.load_teacher()
        sample_Q = self.sample_queries(
            "validation", self.experiment.eval.teacher_validation_queries
        )
        stage = loop.Stage(
            name="teacher",
            model=self.ranker,
            updater=self._make_updater(self.ranker, teacher.learning_rate, teacher.weight_decay),
            max_epochs=teacher.max_epochs,
            patience=teacher.patience,
            validate=lambda frozen: self.evaluate_ranker(
                frozen, "validation", sample_Q
            ).summarise(),
            score_name=self._score_name,
            max_train_s=_seconds(teacher.max_minutes),
            constants=self._make_constants(self.ranker),
        )
        return self._train(stage)

    def train_student(self) -> Trained:
        """Trains or resumes the student, after the stages that its method begins with.

        Raises:
          ValueError: When it is to be distilled and there is no trained teacher.
        """
        experiment = self.experiment
        start_from, pretraining_s = None, 0.0
        for pretraining in experiment.model.pretraining():
            trained = self._pretrain(pretraining, start_from)
            start_from, pretraining_s = trained.frozen, pretraining_s + trained.progress.train_s
        sample_Q = self.sample_queries("validation", experiment.eval.validation_queries)
        teacher = self.load_teacher() if self.needs_teacher else None
        objective = experiment.model.objective()
        stage = loop.Stage(
            name="student",
            model=self.matcher,
            updater=self._make_updater(
                self.matcher,
                experiment.train.learning_rate,
                experiment.train.weight_decay,
                experiment.train.beta_2,
            ),
            max_epochs=experiment.train.max_epochs,
            patience=experiment.train.patience,
            validate=lambda frozen: self.evaluate_matcher(
                frozen, "validation", sample_Q
            ).summarise(),
            score_name=self._score_name,
            loss_method=objective.loss_method,
            max_train_s=_seconds(experiment.train.max_minutes) - pretraining_s,
            start_from=start_from,
            constants=self._make_constants(self.matcher),
            average_decay=self._average_decay("student"),
            teacher=self.ranker if teacher else None,
            frozen_teacher=teacher.frozen if teacher else None,
            distill_weight=experiment.loss.distill_weight,
            distill_temperature=experiment.loss.distill_temperature,
            distill_warmup_epochs=experiment.loss.distill_warmup_epochs,
        )
        return self._train(stage, last_only=objective.last_only)

    def _pretrain(
        self, pretraining: schema.Pretraining, start_from: train_state.Frozen | None
    ) -> Trained:
        chosen = self.experiment.train
        stage = loop.Stage(
            name=pretraining.name,
            model=self.matcher,
            # Without L2: Adam makes full steps of it, where nothing else gives a gradient.
            updater=self._make_updater(self.matcher, chosen.learning_rate, 0.0, chosen.beta_2),
            max_epochs=pretraining.epochs,
            patience=pretraining.epochs,
            validate=None,
            score_name=self._score_name,
            loss_method=pretraining.loss_method,
            start_from=start_from,
            constants=self._make_constants(self.matcher),
        )
        return self._train(stage, last_only=pretraining.last_only)

    def load_student(self) -> Trained:
        """The best student of this workdir."""
        return self._load("student", self.matcher, self.workdir)

    def load_pretrained(self) -> list[Trained]:
        """The stages before the main one, in their order."""
        stages = self.experiment.model.pretraining()
        return [self._load(stage.name, self.matcher, self.workdir) for stage in stages]

    def load_teacher(self) -> Trained:
        """The best teacher of this workdir, or of the one the configuration names."""
        folder = self.experiment.teacher.from_workdir
        workdir = pathlib.Path(folder).expanduser() if folder else self.workdir
        return self._load("teacher", self.ranker, workdir)

    @property
    def _score_name(self) -> str:
        return f"recall@{self.experiment.eval.k[0]}"

    def _make_constants(self, model: Model) -> dict[str, np.ndarray]:
        return statistics.make_constants(self.store, model.constant_shapes)

    def sample_queries(self, split: str, per_scenario: int | None) -> np.ndarray:
        """At most so many queries of every scenario, the same in every run; None takes all."""
        return protocol.sample_queries(self.store, split, per_scenario, QUERY_SEED)

    def _train(self, stage: loop.Stage, *, last_only: bool = False) -> Trained:
        experiment = self.experiment
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
                last_only=last_only,
            ),
            key=jax.random.key(experiment.stage_seed(stage.name)),
            num_negatives=experiment.train.num_negatives,
            steps_per_report=experiment.train.steps_per_report,
            steps_per_dispatch=experiment.train.steps_per_dispatch,
            every_steps=experiment.checkpoint.every_steps,
            reporter=self.reporter,
            stop=self._stop,
        )
        checkpoints = self._checkpoints(stage.name, self.workdir)
        try:
            state, progress = loop.train_stage(stage, setting, checkpoints)
        finally:
            checkpoints.close()
        return Trained(train_state.freeze(state), progress)

    def _load(self, stage: str, model: Model, workdir: pathlib.Path) -> Trained:
        checkpoints = self._checkpoints(stage, workdir)
        try:
            # Only the shapes matter; the optimiser's do not depend on its constants.
            like = train_state.abstract_state(
                model,
                self._make_updater(model, 1e-3, 0.0),
                mesh=self.mesh,
                averaged=self._average_decay(stage) > 0,
            )
            best = checkpoints.restore_best(like, self.mesh)
            progress = checkpoints.latest_progress()
        finally:
            checkpoints.close()
        if best is None or progress is None:
            raise ValueError(
                f"{workdir}: expected a trained {stage}, found none; run --mode {stage} first"
            )
        return Trained(train_state.freeze(best[0]), progress)

    def _make_updater(
        self,
        model: Model,
        learning_rate: float,
        weight_decay: float,
        beta_2: float = optimizer.BETA_2,
    ) -> optimizer.Updater:
        chosen = self.experiment.optim
        if chosen.embedding == "dense":
            return optimizer.Dense(optimizer.make_optimizer(learning_rate, weight_decay, beta_2))
        return row_sparse.RowSparse(
            model.spec,
            learning_rate,
            weight_decay,
            method=chosen.row_method,
            min_rows=chosen.min_rows,
            mesh=self.mesh,
            beta_2=beta_2,
        )

    def _average_decay(self, stage: str) -> float:
        return self.experiment.train.average_decay if stage == "student" else 0.0

    def _checkpoints(self, stage: str, workdir: pathlib.Path) -> checkpoint.StageCheckpoints:
        fields = fingerprint.of_stage(self.experiment, stage=stage)
        fields["data_hash"] = self.store.data_hash
        return checkpoint.StageCheckpoints(workdir, stage, fields)


def select_features(
    store: store_lib.Store, experiment: schema.Experiment, *, for_teacher: bool = False
) -> features.FeatureSpec:
    """The features that a run's models see.

    Args:
      store: The prepared data.
      experiment: The run.
      for_teacher: Without what the student's method alone reads.
    """
    chosen = experiment.features
    return features.select(
        store.spec,
        exclude=tuple(chosen.exclude),
        history_length=chosen.history_length,
        scenario_history_length=chosen.scenario_history_length,
        embedding_dim=chosen.embedding_dim,
        scenario_histories=experiment.model.scenario_histories and not for_teacher,
        history_encoder="mean" if for_teacher else chosen.history_encoder,
    )


def _seconds(minutes: float) -> float:
    """A limit of time in seconds; without one it is never reached."""
    return 60 * minutes if minutes else math.inf
