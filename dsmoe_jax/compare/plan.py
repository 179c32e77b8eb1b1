"""Jobs of the comparison: the systems of every table and figure, and the runs that they need.

Owns which runs a table or a figure needs, and the budgets: seeds, epochs, minutes and test days. A
job is one system with one seed, tested on some days; a job that several tables need is one job. How
jobs are run is in `compare/runner.py`.
"""

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dsmoe_jax.baselines import catalogue
from dsmoe_jax.config import fingerprint, load, schema
from dsmoe_jax.models import registry

Overrides = Mapping[str, Any]

# Tables and figures of the paper, and a table of what it leaves open.
PRINTED = ("table1", "table2", "table3", "table4", "fig2", "fig3", "fig4")
DECIDED = "decisions"
TABLES = (*PRINTED, DECIDED)

METHOD = registry.DEFAULT_MATCHER
# It, with the inputs `plus` and earlier stages as its teacher.
TAUGHT = "taught"
# What the method is by its inputs.
_OWN = (METHOD, registry.PLUS_MATCHER)
_TEACHER = "teacher"

# Tokens, label and overrides of a system that differs from the method in a few values.
Change = tuple[str, str, Overrides]
# The paper's Table 4, and no normalisation at all.
ABLATIONS: dict[str, Change] = {
    "no_sap": ("no_sap", "without SAP", {}),
    "no_distill": ("no_distill", "without distillation", {}),
    "no_dsbn": ("no_dsbn", "without DSBN", {}),
    "no_norm": ("no_norm", "without any normalisation", {}),
}
# The same of DSMOE beside FISM: what it is told, what it learns from, and its towers.
PLUS_ABLATIONS: dict[str, Change] = {
    "no_exposures": ("", "without exposures, in the prior too", {"data.exposures": False}),
    "no_exposure_history": (
        "",
        "with exposures in the prior alone",
        {"features.exclude": ("user_id", "exposures")},
    ),
    "no_exposure_targets": ("", "without exposures as targets", {"model.exposure_weight": 0.0}),
    "no_earlier_targets": (
        "",
        "without positives of before the log as targets",
        {"model.earlier_weight": 0.0},
    ),
    "no_recency": (
        "",
        "every event weighs the same, however old",
        {"model.recency": 1.0, "model.exposure_recency": 1.0},
    ),
    "shared_norm": ("", "without DSBN: one batch normalisation", {"model.norm": "bn"}),
    "shared_layers": ("", "without SAP: the same layers everywhere", {"model.use_sap": False}),
    "one_expert": ("", "with one expert, which needs no gate", {"model.num_experts": 1}),
}
# What the paper leaves open, or what this project decided otherwise.
DECISIONS: dict[str, Change] = {
    "shared_item_tower": ("shared_item_tower", "one item index for all scenarios", {}),
    "same_fields": ("teacher_fields=same", "taught by a teacher with its own fields alone", {}),
    "undistilled": (
        "no_distill,undistilled",
        "without distillation, with values searched for that",
        {},
    ),
    "row_sparse": (
        "no_distill,undistilled",
        "the same, with updates of single rows",
        {"optim.embedding": "row_sparse", "optim.min_rows": 1},
    ),
    "paper_exact": ("paper_exact", "every value as printed", {}),
}
# Tables of recall that are made of all choices of test days.
_ALL_DAYS = ("table2", "table4")
# Values beside the default one, which the method's own row has.
SWEEPS = {"fig2": ("num_experts", (1, 2, 3, 4, 5)), "fig3": ("rank", (1, 2, 4, 8, 16))}


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is spent on a comparison.

    Attributes:
      seeds: Of the systems of Table 2: 0 to seeds - 1.
      other_seeds: The same for what Table 4 and the figures need beyond them.
      max_epochs: Upper bound on a job's epochs; None leaves the configuration's own.
      max_minutes: Minutes after which no further epoch begins; 0 for no limit.
      shares_teacher: Whether all seeds are taught by the teacher of seed 0.
      decisions: Whether `all` takes in what the paper leaves open, with teachers of its own.
      dropped_days: Each tests on other days: how many days at the end of the log are left out.
    """

    seeds: int = 2
    other_seeds: int = 1
    max_epochs: int | None = None
    max_minutes: float = 0.0
    shares_teacher: bool = True
    decisions: bool = False
    dropped_days: tuple[int, ...] = (0,)

    def limit(self, experiment: schema.Experiment) -> dict[str, int | float]:
        """The fields that keep an experiment within the budget, both of its stages alike."""
        fields: dict[str, int | float] = {}
        for section in ("train", "teacher"):
            own = getattr(experiment, section).max_epochs
            if self.max_epochs is not None and own > self.max_epochs:
                fields[f"{section}.max_epochs"] = self.max_epochs
            if self.max_minutes:
                fields[f"{section}.max_minutes"] = self.max_minutes
        return fields


BUDGETS = {
    "small": Budget(max_epochs=15, max_minutes=3.0),
    "full": Budget(3, 3, shares_teacher=False, decisions=True, dropped_days=(0, 2)),
}


def adjust_budget(budget: Budget, seeds: int | None, days: str | None) -> Budget:
    """A budget with other seeds or days, comma-separated numbers; None keeps the budget's.

    Raises:
      ValueError: When either is out of range.
    """
    if seeds is not None:
        if seeds < 1:
            raise ValueError(f"--seeds: expected a number >= 1, got {seeds}")
        budget = dataclasses.replace(budget, seeds=seeds, other_seeds=seeds)
    if days is not None:
        if not re.fullmatch(r"\d+(,\d+)*", days):
            raise ValueError(f"--days: expected numbers such as 0,2, got {days!r}")
        dropped = tuple(dict.fromkeys(int(day) for day in days.split(",")))
        budget = dataclasses.replace(budget, dropped_days=dropped)
    return budget


@dataclasses.dataclass(frozen=True)
class System:
    """One system of a table, run once per seed.

    Attributes:
      name: Short name, part of a job's folder.
      config: `FILE:variant`, as on the command line.
      kind: "run" trains and reports, "teacher" trains a teacher for other systems, "scored" is a
        system without towers (`baselines/catalogue.py`), "truth" ranks by a simulation's true
        scores, "search" tries hyper-parameters (`compare/search.py`).
    """

    name: str
    label: str
    config: str
    overrides: Overrides = dataclasses.field(default_factory=dict)
    kind: str = "run"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      overrides: Values of the run's fields, without its folders.
      dropped_days: Days at the end of the log that are left out.
      teacher: Name of the job whose teacher it takes; empty for a job without one.
      more: Further entries of the file that its process reads.
    """

    system: System
    seed: int
    overrides: Overrides
    dropped_days: int = 0
    teacher: str = ""
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder and its record."""
        return job_name(self.system.name, self.seed, self.dropped_days)

    @functools.cached_property
    def experiment(self) -> schema.Experiment:
        """Its validated configuration."""
        return load.load_config(self.system.config, self.overrides)

    @property
    def components(self) -> list[str]:
        """Components of `numerics.VERSIONS` that decide its numbers."""
        if self.system.kind == "scored":
            return catalogue.components(self.system.name)
        if self.system.kind == "truth":
            return ["data", "evaluation"]
        return registry.components(
            self.experiment,
            student=self.system.kind == "run",
            teacher=self.system.kind == "teacher" or bool(self.teacher),
        )


def job_name(system: str, seed: int, dropped_days: int) -> str:
    """Name of a job: `perscen-seed1`, or `perscen-seed1-drop2` on earlier days."""
    return f"{system}-seed{seed}" + (f"-drop{dropped_days}" if dropped_days else "")


def systems_of(table: str, config: str) -> tuple[System, ...]:
    """The systems of a table or a figure, in order; a configuration file may lack some of them.

    Raises:
      load.UsageError: When the file or the variant is wrong, or another method's.
    """
    _check_own(config)
    model = _load(config).model
    own = System(METHOD, _label_of(model), config)
    is_plus = type(model) is registry.MATCHERS[registry.PLUS_MATCHER]
    if table in ("table2", "table3"):
        methods = {name: registry.LABELS.get(name, name) for name in registry.METHOD_TOKENS}
        baselines = (
            System(name, baseline.label, config, kind="scored")
            for name, baseline in catalogue.SYSTEMS.items()
        )
        rows: dict[str, Change] = {name: (name, methods[name], {}) for name in methods}
        if is_plus:
            rows = {TAUGHT: (TAUGHT, f"{own.label}, taught", {}), **rows}
        found = (own, *_variants(config, rows))
        return found if table == "table3" else (*found, *baselines)
    if table in SWEEPS:
        # The default value is the method's own row.
        field, values = SWEEPS[table]
        usual = getattr(_load(config).model, field)
        return tuple(
            System(METHOD, str(value), config)
            if value == usual
            else System(f"{field}{value}", str(value), config, {f"model.{field}": value})
            for value in sorted({*values, usual})
        )
    ablations = PLUS_ABLATIONS if is_plus else ABLATIONS
    changes = {"table4": ablations, DECIDED: DECISIONS, "fig4": {}}
    return (own, *_variants(config, changes[table])) if table in changes else ()


def make_jobs(
    tables: Iterable[str],
    config: str,
    budget: Budget,
    *,
    overrides: Overrides | None = None,
) -> list[Job]:
    """Every job that the tables need, each once; a job stands after those it needs.

    The configuration is that of the method itself; overrides are values of fields in every job.
    """
    jobs: dict[str, Job] = {}
    for table in sorted(tables, key=TABLES.index):
        chosen = systems_of(table, config)
        days = budget.dropped_days if table in _ALL_DAYS else budget.dropped_days[:1]
        seeds = budget.seeds if table == "table2" else budget.other_seeds
        for dropped, seed, system in itertools.product(days, range(seeds), chosen):
            for job in _make_jobs(system, config, seed, dropped, budget):
                more = {**job.overrides, **(overrides or {})}
                jobs.setdefault(job.name, dataclasses.replace(job, overrides=more))
    return list(jobs.values())


def _make_jobs(system: System, config: str, seed: int, dropped: int, budget: Budget) -> list[Job]:
    """The job of a system, after that of the teacher it needs."""
    if system.kind == "scored":
        # Nothing is random in the built-in ones.
        return [_make_job(system, seed if system.name in catalogue.EXTERNAL else 0, dropped, {})]
    experiment = _load(system.config)
    overrides = {**system.overrides, **budget.limit(experiment), "eval.references": False}
    if experiment.loss.distill_weight == 0:
        return [_make_job(system, seed, dropped, overrides)]
    teacher_seed = 0 if budget.shares_teacher else seed
    teacher = _make_teacher(system, config, teacher_seed, dropped, budget)
    if teacher_seed != seed:
        overrides["teacher.seed"] = teacher_seed
    if system.name != METHOD and teacher.system.name == _TEACHER:
        # It is evaluated once, in the job of the method itself.
        overrides["eval.teacher_test_queries"] = 0
    job = _make_job(system, seed, dropped, overrides)
    return [teacher, dataclasses.replace(job, teacher=teacher.name)]


def _make_teacher(system: System, config: str, seed: int, dropped: int, budget: Budget) -> Job:
    """The job of a system's teacher: that of the method itself, or one that differs from it."""
    own = System(_TEACHER, "teacher", config, kind="teacher")
    other = dataclasses.replace(
        system,
        name=f"{_TEACHER}_of_{system.name}",
        label=f"teacher of: {system.label}",
        kind="teacher",
    )
    first, second = (
        _make_job(s, seed, dropped, {**s.overrides, **budget.limit(_load(s.config))})
        for s in (own, other)
    )
    one, two = (fingerprint.of_stage(j.experiment, stage="teacher") for j in (first, second))
    return first if one == two else second


def _make_job(system: System, seed: int, dropped: int, overrides: Overrides) -> Job:
    days = {"data.drop_last_days": dropped} if dropped else {}
    return Job(system, seed, {"seed": seed, **days, **overrides}, dropped)


def _variants(config: str, changes: Mapping[str, Change]) -> Iterator[System]:
    """The systems of changes by name, without those whose tokens the file does not know."""
    for name, (tokens, label, overrides) in changes.items():
        extended = load.extend(config, tokens)
        with contextlib.suppress(load.UsageError):
            _load(extended)
            yield System(name, label, extended, overrides)


def _check_own(config: str) -> None:
    """Refuses what would stand under the method's name without being it."""
    _, variant = load.split(config)
    ablation = next(
        (token for token in variant.split(",") if token in registry.ABLATION_TOKENS), ""
    )
    model = _load(config).model
    if ablation or type(model) not in map(registry.MATCHERS.get, _OWN):
        raise load.UsageError(
            f"--config {config}: expected {registry.LABELS[METHOD]}'s own configuration, got "
            f"{ablation or type(model).__name__}; other methods and ablations are rows of the "
            "tables anyway"
        )


def _label_of(model: schema.MatcherConfig) -> str:
    """What tables print of one of our own methods."""
    return next(registry.LABELS[n] for n in _OWN if type(model) is registry.MATCHERS[n])


@functools.lru_cache
def _load(config: str) -> schema.Experiment:
    return load.load_experiment(*load.split(config))
