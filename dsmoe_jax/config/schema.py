"""Configuration schema: plain typed dataclasses, one section per concern.

Owns: the sections, their defaults (the paper's, arXiv 2601.02368, where it states one), ranges and
roles, and the checks across sections. Does not own: a method's hyper-parameters, which live in the
method's file as a subclass of `MatcherConfig` or `RankerConfig`; a data set's columns, which live
in its file under `data/prepare/` as a subclass of `DataConfig`; the choice of values for a run,
which `configs/*.py` make with the help of `variants.py`.

A section is mutable because command-line overrides (`--config.train.learning_rate=3e-4`) assign to
it; after `Experiment.validate` nothing changes it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from dsmoe_jax.config import fields

T = TypeVar("T")

# Roles of whole sections.
_STUDENT, _RESUMABLE = fields.Declaration(student_only=True), fields.Declaration(resumable=True)

# Parts of a run that can be asked for.
MODES = ("all", "prepare", "teacher", "student", "evaluate", "export")
HISTORY_ENCODERS = ("mean", "hstu", "fuxi", "fuxi_mme")


@dataclasses.dataclass
class DataConfig:
    """Where the raw rows are and how days become splits. Data sets extend it.

    Attributes:
      raw_dir: Folder with the data set's official files; empty means the data set's own default.
      store_dir: Folder of the prepared store; empty means `<workdir>/store`.
      standard_file: File with another store's moments of numbers and bounds of ranges, which are
        used in place of this log's own; `--continue_from` sets it. Its content counts.
      validation_days: Days before the test days that validate, at least 1.
      test_days: Last days, held out for the final report, at least 1.
      drop_last_days: Days at the end of the log that are left out before splitting, so that the
        same configuration can be evaluated on earlier days.
      exposures: Whether what users were shown and what is no positive is kept: the sequence
        `exposures`, read as histories are.
      repeats: Whether what a user had clicked before is relevant when clicked again in a held-out
        split; asks for `eval.remove_seen` "none". Which queries there are depends on it, so that it
        is a matter of the store.
    """

    raw_dir: str = fields.field("", resumable=True, unhashed=True)
    store_dir: str = fields.field("", resumable=True, unhashed=True)
    standard_file: str = fields.field("", resumable=True, unhashed=True)
    validation_days: int = fields.field(2, at_least=1)
    test_days: int = fields.field(2, at_least=1)
    drop_last_days: int = fields.field(0, at_least=0)
    exposures: bool = fields.field(False, added_later=True)
    repeats: bool = fields.field(False, added_later=True)

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

    embedding_dim: int = fields.field(16, at_least=1)
    history_length: int = fields.field(50, at_least=1)
    scenario_history_length: int = fields.field(50, at_least=1)
    exclude: tuple[str, ...] = ()
    history_encoder: str = fields.field(
        "mean", choices=HISTORY_ENCODERS, student_only=True, added_later=True
    )


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A stage of training before the main one, which starts from its parameters.

    Attributes:
      name: Of the stage, its checkpoints and curves: lower-case letters.
      loss_method: The model's method that gives the loss; see `train_step.make_train_step`.
      epochs: Passes over its examples, at least 1; nothing selects among them.
      last_only: Whether a pass holds the last training example of every user and no other, for
        losses over all positions of a user's history.
      learning_rate: Adam's step size; None for that of the main stage.
      decays: Whether it falls over the stage, see `optimizer.make_schedule`.
      least_steps: Passes go on until there were so many steps.
      is_start: Whether it starts from the one before, and the next one from it.
      is_teacher: Whether its model, as it is in the end, teaches in the main stage, beside the
        others that do: by the mean of what the objective's `logit_method` gives.
    """

    name: str
    loss_method: str
    epochs: int
    last_only: bool = False
    learning_rate: float | None = None
    decays: bool = False
    least_steps: int = 0
    is_start: bool = True
    is_teacher: bool = False


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the main stage minimises.

    Attributes:
      loss_method: The model's method that gives the loss, see `train_step.make_train_step`; empty
        for logits and their cross entropy, which alone a ranker can teach.
      last_only: See `Pretraining`.
      logit_method: The model's method that gives the logits which that loss is the cross entropy of
        (`sampled_softmax.first_among`), and which earlier stages can teach; empty for none.
      teacher_weight: lambda of their divergence.
    """

    loss_method: str = ""
    last_only: bool = False
    logit_method: str = ""
    teacher_weight: float = 0.0


@dataclasses.dataclass
class MethodConfig:
    """A method's hyper-parameters; see `MatcherConfig` and `RankerConfig`.

    Attributes:
      section: Path of the section that the method is configured in.
    """

    section: ClassVar[str]

    @property
    def search_space(self) -> dict[str, tuple[Any, ...]]:
        """Values of the method's own fields that a search of its hyper-parameters tries.

        Fields that all methods share are searched beside them (`compare/search.py`).
        """
        declared = fields.declarations(type(self)).items()
        return {n: own.metadata["search"] for n, own in declared if "search" in own.metadata}

    def make(self, spec: Any) -> Any:
        """The model for a `features.FeatureSpec`, most simply from `build`.

        Raises:
          ValueError: When a field is out of range or at odds with another or with the features.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no model")

    def build(self, module: Callable[..., T], spec: Any) -> T:
        """A module with these hyper-parameters, checked and copied, as its attribute `cfg`."""
        fields.validate(self, self.section)
        self.check(spec)
        return self.adapt(module)(spec=self.reads(spec), cfg=fields.freeze(self))

    def adapt(self, module: Callable[..., T]) -> Callable[..., T]:
        """What is built in place of a method's module, by fields that all methods have."""
        return module

    def check(self, spec: Any) -> None:
        """Refuses fields, each in its range, that are at odds with others or with the features.

        Raises:
          ValueError: Naming the field, what was expected and what it holds.
        """

    def reads(self, spec: Any) -> Any:
        """The features that the model sees, of those of the run."""
        return spec


@dataclasses.dataclass
class MatcherConfig(MethodConfig):
    """A two-tower method's hyper-parameters; each method extends it in its own file.

    `make` builds a `models.matching.two_tower.Matcher`.

    Attributes:
      known_prior: Whether the log of an item's share of its scenario, as far as it is known, is a
        fixed term of the logits, in training and at serving. It counts exposures too where the
        store has them. A score stays one inner product, of one entry more. Sequential matchers are
        trained beside the log of an item's share among all positives, of any age and scenario.
      recipe: Fields of `TrainConfig` that the method's own source states and that suit no other
        method; configuration files assign them.
    """

    known_prior: bool = fields.field(False, added_later=True)

    section: ClassVar[str] = "model"
    recipe: ClassVar[dict[str, Any]] = {}

    def adapt(self, module: Any) -> Any:
        """See `MethodConfig.adapt`."""
        return module.with_known_prior() if self.known_prior else module

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

    def calibrated(self) -> str:
        """The parameter that holds the log of the score's weight beside the prior, by scenario.

        Its start in the main stage is chosen on validation queries; empty where there is none.
        """
        return ""


@dataclasses.dataclass
class RankerConfig(MethodConfig):
    """A joint-input teacher's hyper-parameters; each method extends it in its own file.

    `make` builds a `models.ranking.ranker.Ranker`.
    """

    section: ClassVar[str] = "teacher.model"


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
    max_epochs: int = fields.field(50, at_least=1, resumable=True)
    patience: int = fields.field(5, at_least=1, resumable=True)
    learning_rate: float = fields.field(1e-3, above=0)
    weight_decay: float = fields.field(1e-6, at_least=0)
    max_minutes: float = fields.field(0.0, at_least=0, resumable=True, added_later=True)
    seed: int = fields.field(-1, at_least=-1, student_only=True, added_later=True)
    from_workdir: str = fields.field("", resumable=True, unhashed=True)


@dataclasses.dataclass
class LossConfig:
    """L = BCE + distill_weight * KL(teacher || student), and what may stand in place of both.

    **Paper:** section "Distillation". The paper states neither weight nor temperature; all but
    cross entropy with uniform negatives is ours. A method with a loss of its own keeps that.

    Attributes:
      task: What the student learns of its candidates: "bce", every one by itself; "pairwise", BPR,
        the positive against each negative; "softmax", the positive among all.
      negatives: "uniform" over the corpus; "popularity", in proportion to training examples;
        "scenario", to those of the same scenario. The latter two are positives of other examples of
        the batch.
      uniform_share: Share in [0, 1] of other negatives that is drawn uniformly all the same: a
        small scenario has few in a batch.
      log_q: With task "softmax": subtracts the log of each negative's probability of being drawn,
        so that the sum over the draws estimates that over the corpus.
      distill_kind: "bernoulli", the paper's KL of every candidate by itself, or "listwise", between
        softmaxes over the candidates.
      distill_weight: lambda >= 0; 0 trains without a teacher.
      distill_temperature: tau > 0 divides both logits inside the KL, which is then scaled by
        tau^2. The paper's definition of the student's probability implies 1.
      distill_warmup_epochs: First epochs of the student that train with lambda = 0.
    """

    distill_weight: float = fields.field(1.0, at_least=0)
    distill_temperature: float = fields.field(1.0, above=0)
    distill_warmup_epochs: int = fields.field(0, at_least=0)
    task: str = fields.field("bce", choices=("bce", "pairwise", "softmax"), added_later=True)
    negatives: str = fields.field(
        "uniform", choices=("uniform", "popularity", "scenario"), added_later=True
    )
    uniform_share: float = fields.field(0.0, at_least=0, at_most=1, added_later=True)
    log_q: bool = fields.field(False, added_later=True)
    distill_kind: str = fields.field(
        "bernoulli", choices=("bernoulli", "listwise"), added_later=True
    )

    @property
    def share(self) -> str:
        """Of which examples a step wants to know an item's share, see `pipeline.BatchSource`."""
        kinds = {"popularity": "all", "scenario": "scenario"}
        return kinds.get(self.negatives, "") if self.log_q else ""


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
      decay_epochs: Epochs over which the step size falls to a twentieth, along half a cosine, and
        then stays; 0 keeps it. Where it falls, the last epoch is kept and not the best one, and
        `patience` is ignored.
      beta_2: Decay in (0, 1) per step of Adam's second moments.
      average_decay: Decay in [0, 1) per step of a moving average of parameters and running
        statistics; the average is what is evaluated, kept and exported. 0 keeps none, as the paper.
      steps_per_report: Steps between two points of the logged training curves.
      steps_per_dispatch: Steps that the devices take at a time without the host: for steps that are
        short beside starting one. Reports, saves and stops wait for all of them.
      continue_epochs: In place of `max_epochs` of student and teacher, and at most in place of
        `decay_epochs`, where a run goes on from another (`--continue_from`); 0 only carries over.
      hold_items: Where a run goes on from another, whether everything that the vectors of known
        items are made of stays as it is, so that a deployed index of them stays valid.
    """

    batch_size: int = fields.field(816, at_least=1)
    num_negatives: int = fields.field(4, at_least=1)
    max_epochs: int = fields.field(50, at_least=1, resumable=True)
    patience: int = fields.field(10, at_least=1, resumable=True)
    max_minutes: float = fields.field(0.0, at_least=0, resumable=True, added_later=True)
    learning_rate: float = fields.field(1e-4, above=0, student_only=True)
    weight_decay: float = fields.field(1e-6, at_least=0, student_only=True)
    decay_epochs: int = fields.field(0, at_least=0, student_only=True, added_later=True)
    beta_2: float = fields.field(0.999, above=0, below=1, student_only=True, added_later=True)
    average_decay: float = fields.field(0.0, at_least=0, below=1, student_only=True)
    steps_per_report: int = fields.field(20, at_least=1, resumable=True, unhashed=True)
    steps_per_dispatch: int = fields.field(1, at_least=1, added_later=True)
    continue_epochs: int = fields.field(3, at_least=0, added_later=True)
    hold_items: bool = fields.field(False, student_only=True, added_later=True)


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

    embedding: str = fields.field("dense", choices=("dense", "row_sparse"))
    row_method: str = fields.field("adam", choices=("adam", "adagrad"))
    min_rows: int = fields.field(16_384, at_least=1)


@dataclasses.dataclass
class EvalConfig:
    """Full-corpus evaluation.

    Attributes:
      k: Cut-offs of recall, hit rate and NDCG, ascending; the smallest one selects epochs.
      mrr_depth: Ranks that the mean reciprocal rank tells apart: a relevant item further down
        counts as one place below them. 0 leaves it out.
      remove_seen: Which items are removed from every list: "none", "positives" (what the user
        clicked in the log before the split's first day) or "shown" (all that is known of the user
        by then: the whole history, clicks from before the log among them, and all exposures).
      backend: "exact" (JAX top-k) or "faiss".
      validation_queries: Student queries per scenario sampled (fixed by the seed) each epoch.
      teacher_validation_queries: The same for the teacher, whose scoring is brute force.
      teacher_test_queries: Teacher queries per scenario in the final report; 0 leaves the teacher
        out of it.
      query_batch: Queries embedded and searched at once.
      item_batch: Items embedded at once.
      references: Whether the report computes the baselines (popularity, SVD, EASE, ...).
    """

    k: tuple[int, ...] = fields.field((50, 100), at_least=1, ascending=True)
    mrr_depth: int = fields.field(0, at_least=0, added_later=True)
    remove_seen: str = fields.field(
        "positives",
        choices=("none", "positives", "shown"),
        formerly={True: "positives", False: "none"},
    )
    backend: str = fields.field("exact", choices=("exact", "faiss"))
    validation_queries: int = fields.field(2000, at_least=1)
    teacher_validation_queries: int = fields.field(200, at_least=1)
    teacher_test_queries: int = fields.field(1000, at_least=0)
    query_batch: int = fields.field(512, at_least=1)
    item_batch: int = fields.field(4096, at_least=1)
    references: bool = True


@dataclasses.dataclass
class CheckpointConfig:
    """When state is written.

    Attributes:
      every_steps: Steps between two saves inside an epoch; 0 saves at epoch ends only. A signal
        always saves first.
      bundle: Whether a whole run ends with its serving bundle; `--mode export` writes one later.
    """

    every_steps: int = fields.field(0, at_least=0, unhashed=True)
    bundle: bool = fields.field(True, unhashed=True)


@dataclasses.dataclass
class Experiment:
    """One run: everything that decides its numbers, and what it is called.

    Attributes:
      dataset: Name of the data set, as printed with results; synthetic rows say so here.
      variant: The variant string the config file was asked for.
      seed: Seed of initial parameters, example order, negatives and dropout.
      by_size: Whether fields of training that hold their default, which is the paper's for millions
        of examples, get values that suit the number of positives once the data are prepared
        (`run/sizes.py`). The run prints and keeps them; a hash knows the values alone.
      continued_from: Digest of the checkpoint that the run goes on from; `--continue_from` sets it.
    """

    dataset: str
    data: DataConfig
    model: MatcherConfig = dataclasses.field(metadata=_STUDENT)
    teacher: TeacherConfig
    variant: str = fields.field("", resumable=True, unhashed=True)
    seed: int = fields.field(0, at_least=0)
    by_size: bool = fields.field(False, resumable=True, unhashed=True)
    continued_from: str = fields.field("", added_later=True)
    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig, metadata=_STUDENT)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig, metadata=_RESUMABLE)
    checkpoint: CheckpointConfig = dataclasses.field(
        default_factory=CheckpointConfig, metadata=_RESUMABLE
    )

    def validate(self) -> None:
        """Checks ranges and combinations of fields.

        Raises:
          ValueError: Naming the field, the value and what was expected.
        """
        fields.validate(self)
        self._validate_loss()
        if self.data.repeats and self.eval.remove_seen != "none":
            raise ValueError(
                "eval.remove_seen: expected 'none' with data.repeats, whose relevant items "
                f"would be removed from lists, got {self.eval.remove_seen!r}"
            )
        if self.loss.distill_weight and self.model.objective().loss_method:
            raise ValueError(
                f"loss.distill_weight: expected 0 with {type(self.model).__name__}, whose loss has "
                f"no logits of candidates to teach, got {self.loss.distill_weight!r}"
            )

    def _validate_loss(self) -> None:
        loss, usual = self.loss, LossConfig()
        if self.model.objective().loss_method:
            for name in ("task", "negatives", "uniform_share", "log_q", "distill_kind"):
                if (value := getattr(loss, name)) != (expected := getattr(usual, name)):
                    raise ValueError(
                        f"loss.{name}: expected {expected!r} with {type(self.model).__name__}, "
                        f"whose loss is its own, got {value!r}"
                    )
        if loss.log_q and loss.task != "softmax":
            raise ValueError(
                f"loss.log_q: expected False with loss.task {loss.task!r}, which sums over no "
                "corpus; it is for 'softmax'"
            )
        if loss.uniform_share and loss.negatives == "uniform":
            raise ValueError(
                "loss.uniform_share: expected 0 with loss.negatives 'uniform', all of which are, "
                f"got {loss.uniform_share!r}"
            )

    def stage_seed(self, stage: str) -> int:
        """Seed of a stage: the run's, but of a teacher its own where it has one."""
        own = self.teacher.seed
        return own if stage == "teacher" and own >= 0 else self.seed
