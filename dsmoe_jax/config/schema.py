"""The configuration every run shares: plain typed dataclasses, one section per concern.

Owns: the sections, their defaults (the paper's, arXiv 2601.02368, where it states one) and the
checks across sections. Does not own: a method's hyper-parameters, which live in the method's file
as a subclass of `MatcherConfig` or `RankerConfig`; a data set's columns, which live in its file
under `data/prepare/` as a subclass of `DataConfig`; the choice of values for a run, which
`configs/*.py` make with the help of `variants.py`.

A section is mutable because command-line overrides (`--config.train.learning_rate=3e-4`) assign to
it; after `Experiment.validate` nothing changes it.
"""

import dataclasses
from typing import Any, ClassVar


@dataclasses.dataclass
class DataConfig:
    """Where the raw rows are and how days become splits. Data sets extend it.

    Attributes:
      raw_dir: Folder with the data set's official files; empty means the data set's own default.
      store_dir: Folder of the prepared store; empty means `<workdir>/store`.
      validation_days: Days before the test days that validate, at least 1.
      test_days: Last days, held out for the final report, at least 1.
      drop_last_days: Days at the end of the log that are left out before splitting, so that the
        same configuration can be judged on earlier days.
    """

    raw_dir: str = ""
    store_dir: str = ""
    validation_days: int = 2
    test_days: int = 2
    drop_last_days: int = 0

    def prepare(self, store_dir: str) -> None:
        """Writes the store (see `data/store.py`) of this data set into `store_dir`.

        Reuses a store whose inputs and settings are unchanged.

        Raises:
          ValueError: On bad input, naming file, row and column.
        """
        raise NotImplementedError(f"{type(self).__name__} prepares nothing")


@dataclasses.dataclass
class FeatureConfig:
    """Which of the store's features a run uses, and how they are embedded.

    Attributes:
      embedding_dim: Width E of every field's embedding (paper: 16).
      history_length: Longest all-scenario history, in items.
      scenario_history_length: Longest history of the query's own scenario, in items.
      exclude: Names of features of the store that the models do not see, e.g. `("user_id",)`.
      history_encoder: What the student's input holds of the all-scenario history: "mean" of its
        events, or the last output of a causal encoder, "hstu", "fuxi" or "fuxi_mme". Teachers take
        the mean.
    """

    embedding_dim: int = 16
    history_length: int = 50
    scenario_history_length: int = 50
    exclude: tuple[str, ...] = ()
    history_encoder: str = "mean"


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A stage of training before the main one, which starts from its parameters.

    Attributes:
      name: Of the stage, its checkpoints and curves: lower-case letters.
      loss_method: The model's method that gives the loss; see `train_step.make_train_step`.
      epochs: Passes over its examples, at least 1; nothing selects among them.
      last_only: Whether a pass holds the last training example of every user and no other, for
        losses over all positions of a user's history.
    """

    name: str
    loss_method: str
    epochs: int
    last_only: bool = False


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the main stage minimises.

    Attributes:
      loss_method: The model's method that gives the loss, see `train_step.make_train_step`; empty
        for logits and their cross entropy, which alone a teacher can join.
      last_only: See `Pretraining`.
    """

    loss_method: str = ""
    last_only: bool = False


@dataclasses.dataclass
class MatcherConfig:
    """A two-tower method's hyper-parameters; each method extends it in its own file.

    Attributes:
      recipe: Fields of `TrainConfig` that the method's own source states and that suit no other
        method; configuration files assign them.
      search_space: Values of the method's own fields that a search of its hyper-parameters tries,
        beside the fields that all methods share (`compare/search_space.py`).
    """

    recipe: ClassVar[dict[str, Any]] = {}
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @property
    def scenario_histories(self) -> bool:
        """Whether the method reads every scenario's own history: `features.SCENARIO_HISTORIES`."""
        return False

    def objective(self) -> Objective:
        """What the main stage minimises."""
        return Objective()

    def pretraining(self) -> tuple[Pretraining, ...]:
        """The stages before the main one, in their order."""
        return ()

    def make(self, spec: Any) -> Any:
        """Builds the `models.matching.two_tower.Matcher` for a `features.FeatureSpec`."""
        raise NotImplementedError(f"{type(self).__name__} makes no matcher")


@dataclasses.dataclass
class RankerConfig:
    """A joint-input teacher's hyper-parameters; each method extends it in its own file.

    Attributes:
      search_space: See `MatcherConfig`.
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {}

    def make(self, spec: Any) -> Any:
        """Builds the `models.ranking.ranker.Ranker` for a `features.FeatureSpec`."""
        raise NotImplementedError(f"{type(self).__name__} makes no ranker")


@dataclasses.dataclass
class TeacherConfig:
    """How the teacher is trained. It is selected by validation recall and then frozen.

    Attributes:
      model: The ranker.
      max_epochs: Upper bound on passes over the training examples.
      patience: Epochs without a better macro validation recall before training stops.
      learning_rate: Adam's step size.
      weight_decay: Coupled L2, added to the gradient before Adam's moments.
      max_minutes: Minutes of training after which no further epoch begins; 0 for no limit.
      seed: The teacher's own seed, so that students of several seeds can share one teacher; -1 for
        the run's.
      from_workdir: Folder of another run whose finished teacher is used; empty trains one. Its
        configuration and data must be those of this run's teacher.
    """

    model: RankerConfig = dataclasses.field(default_factory=RankerConfig)
    max_epochs: int = 50
    patience: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    max_minutes: float = 0.0
    seed: int = -1
    from_workdir: str = ""


@dataclasses.dataclass
class LossConfig:
    """L = BCE + distill_weight * KL(teacher || student).

    **Paper:** section "Distillation". The weight and the temperature are not stated; A20, A21.

    Attributes:
      distill_weight: lambda >= 0; 0 trains without a teacher.
      distill_temperature: tau > 0 divides both logits inside the KL, which is then scaled by
        tau^2. The paper's definition of the student's probability implies 1.
      distill_warmup_epochs: First epochs of the student that train with lambda = 0.
    """

    distill_weight: float = 1.0
    distill_temperature: float = 1.0
    distill_warmup_epochs: int = 0


@dataclasses.dataclass
class TrainConfig:
    """How the student is trained.

    Attributes:
      batch_size: Positives per step over all devices. The paper's 4,096 rows with four negatives
        per positive are 816 x 5 = 4,080, which 16 divides.
      num_negatives: Uniform negatives per positive, drawn anew each step (paper: unstated).
      max_epochs: Upper bound on passes over the training examples (paper: 50).
      patience: Epochs without a better macro validation recall before training stops.
      max_minutes: Minutes of training, of the stages before it included, after which no further
        epoch begins; 0 for no limit. How far a run gets then depends on the machine.
      learning_rate: Adam's step size (paper: 1e-4).
      weight_decay: Coupled L2 (paper: 1e-6).
      beta_2: Decay in (0, 1) per step of Adam's second moments.
      average_decay: Decay in [0, 1) per step of a moving average of parameters and running
        statistics; the average is what is judged, kept and exported. 0 keeps none, as the paper.
      steps_per_report: Steps between two points of the logged training curves.
      steps_per_dispatch: Steps that the devices take at a time without the host: for steps that are
        short beside starting one. Reports, saves and stops wait for all of them.
    """

    batch_size: int = 816
    num_negatives: int = 4
    max_epochs: int = 50
    patience: int = 10
    max_minutes: float = 0.0
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    beta_2: float = 0.999
    average_decay: float = 0.0
    steps_per_report: int = 20
    steps_per_dispatch: int = 1


@dataclasses.dataclass
class OptimConfig:
    """How parameters are updated, in every stage.

    Attributes:
      embedding: "dense" updates every row of every table in every step, as the paper's recipe does.
        "row_sparse" updates the rows of large tables that a batch touches and no other, so that a
        step's cost does not grow with the tables; untouched rows are not decayed.
      row_method: With "row_sparse": "adam", or "adagrad" with one accumulator per row.
      min_rows: With "row_sparse": smaller tables are updated whole.
    """

    embedding: str = "dense"
    row_method: str = "adam"
    min_rows: int = 16_384


@dataclasses.dataclass
class EvalConfig:
    """Full-corpus evaluation.

    Attributes:
      k: Cut-offs of recall, hit rate and NDCG, ascending; the smallest one selects epochs.
      mrr_depth: Ranks that the mean reciprocal rank tells apart: a relevant item further down
        counts as one place below them. 0 leaves it out.
      remove_seen: Whether items the user clicked before the split's first day are removed.
      backend: "exact" (JAX top-k) or "faiss".
      validation_queries: Student queries per scenario sampled (fixed by the seed) each epoch.
      teacher_validation_queries: The same for the teacher, whose scoring is brute force.
      teacher_test_queries: Teacher queries per scenario in the final report; 0 leaves the teacher
        out of it.
      query_batch: Queries embedded and searched at once.
      item_batch: Items embedded at once.
      references: Whether the report computes the reference rows (popularity, SVD, EASE, ...).
    """

    k: tuple[int, ...] = (50, 100)
    mrr_depth: int = 0
    remove_seen: bool = True
    backend: str = "exact"
    validation_queries: int = 2000
    teacher_validation_queries: int = 200
    teacher_test_queries: int = 1000
    query_batch: int = 512
    item_batch: int = 4096
    references: bool = True


@dataclasses.dataclass
class CheckpointConfig:
    """When state is written.

    Attributes:
      every_steps: Steps between two saves inside an epoch; 0 saves at epoch ends only. A signal
        always saves first.
    """

    every_steps: int = 0


@dataclasses.dataclass
class Experiment:
    """One run: everything that decides its numbers, and what it is called.

    Attributes:
      dataset: Name of the data set, as printed with results; synthetic rows say so here.
      variant: The variant string the config file was asked for.
      seed: Seed of initial parameters, example order, negatives and dropout.
    """

    dataset: str
    data: DataConfig
    model: MatcherConfig
    teacher: TeacherConfig
    variant: str = ""
    seed: int = 0
    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def validate(self) -> None:
        """Checks ranges and combinations of fields.

        Raises:
          ValueError: Naming the field, the value and what was expected.
        """
        for name, low in (
            ("data.validation_days", 1),
            ("data.test_days", 1),
            ("data.drop_last_days", 0),
            ("features.embedding_dim", 1),
            ("features.history_length", 1),
            ("features.scenario_history_length", 1),
            ("train.batch_size", 1),
            ("train.num_negatives", 1),
            ("train.max_epochs", 1),
            ("train.patience", 1),
            ("train.max_minutes", 0),
            ("train.weight_decay", 0),
            ("train.steps_per_report", 1),
            ("train.steps_per_dispatch", 1),
            ("optim.min_rows", 1),
            ("teacher.max_epochs", 1),
            ("teacher.patience", 1),
            ("teacher.max_minutes", 0),
            ("teacher.seed", -1),
            ("teacher.weight_decay", 0),
            ("loss.distill_weight", 0),
            ("loss.distill_warmup_epochs", 0),
            ("eval.mrr_depth", 0),
            ("eval.validation_queries", 1),
            ("eval.teacher_validation_queries", 1),
            ("eval.teacher_test_queries", 0),
            ("eval.query_batch", 1),
            ("eval.item_batch", 1),
            ("checkpoint.every_steps", 0),
            ("seed", 0),
        ):
            value = self._get(name)
            if not value >= low:
                raise ValueError(f"{name}: expected a number >= {low}, got {value!r}")
        for name in ("train.learning_rate", "teacher.learning_rate", "loss.distill_temperature"):
            if not self._get(name) > 0:
                raise ValueError(f"{name}: expected a number > 0, got {self._get(name)!r}")
        if not 0 < self.train.beta_2 < 1:
            raise ValueError(
                f"train.beta_2: expected a number in (0, 1), got {self.train.beta_2!r}"
            )
        if not 0 <= self.train.average_decay < 1:
            raise ValueError(
                f"train.average_decay: expected a number in [0, 1), got "
                f"{self.train.average_decay!r}"
            )
        if not self.eval.k or list(self.eval.k) != sorted(set(self.eval.k)) or self.eval.k[0] < 1:
            raise ValueError(
                f"eval.k: expected ascending distinct cut-offs >= 1, got {self.eval.k!r}"
            )
        for name, choices in (
            ("eval.backend", ("exact", "faiss")),
            ("optim.embedding", ("dense", "row_sparse")),
            ("optim.row_method", ("adam", "adagrad")),
        ):
            if self._get(name) not in choices:
                raise ValueError(
                    f"{name}: expected {choices[0]!r} or {choices[1]!r}, got {self._get(name)!r}"
                )

        if self.loss.distill_weight and self.model.objective().loss_method:
            raise ValueError(
                f"loss.distill_weight: expected 0 with {type(self.model).__name__}, whose loss has "
                f"no logits of candidates to teach, got {self.loss.distill_weight!r}"
            )

    def stage_seed(self, stage: str) -> int:
        """Seed of a stage: the run's, but of a teacher its own where it has one."""
        own = self.teacher.seed
        return own if stage == "teacher" and own >= 0 else self.seed

    def _get(self, name: str) -> Any:
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value
