"""Jobs of the comparison: the systems of every table and figure, and the runs that they need.

Owns which runs a table or a figure needs. A job is one system with one seed, tested on some days; a
job that several tables need is one job. How jobs are run is in `compare/runner.py`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import budget as budget_lib
from dsmoe_jax.config import fingerprint, load, schema
from dsmoe_jax.models import registry

Overrides = Mapping[str, Any]

# Tables and figures of the paper, and a table of what it leaves open.
PRINTED = ("table1", "table2", "table3", "table4", "fig2", "fig3", "fig4")
DECIDED = "decisions"
TABLES = (*PRINTED, DECIDED)

METHOD = registry.DEFAULT_MATCHER
_TEACHER = "teacher"

# The paper's Table 4, and no normalisation at all.
ABLATIONS = {
    "no_sap": "without SAP",
    "no_distill": "without distillation",
    "no_dsbn": "without DSBN",
    "no_norm": "without any normalisation",
}
# What the paper leaves open, or what this project decided otherwise: token, label and overrides.
DECISIONS: dict[str, tuple[str, str, Overrides]] = {
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
class System:
    """One system of a table, run once per seed.

    Attributes:
      name: Short name, part of a job's folder.
      label: What the table prints.
      config: `FILE:variant`, as on the command line.
      overrides: Values of fields.
      kind: "run" trains and reports, "teacher" trains a teacher for other systems, "scored" is a
        system without towers (`baselines/catalogue.py`), "truth" ranks by a simulation's true
        scores, "search" tries hyper-parameters (`compare/search.py`).
      is_seeded: Whether its numbers depend on the seed.
    """

    name: str
    label: str
    config: str
    overrides: Overrides = dataclasses.field(default_factory=dict)
    kind: str = "run"
    is_seeded: bool = True


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      system: What is run.
      seed: Its seed.
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

    Args:
      table: One of `TABLES`.
      config: `FILE:variant` of the method itself.

    Raises:
      load.UsageError: When the file or the variant is wrong, or another method's.
    """
    _check_own(config)
    own = System(METHOD, registry.LABELS[METHOD], config)
    if table in ("table2", "table3"):
        others = [
            _variant(config, name, registry.LABELS.get(name, name))
            for name in registry.METHOD_TOKENS
        ]
        found = [own, *(row for row in others if row)]
        if table == "table3":
            return tuple(found)
        references = System("references", "references", config, {}, "scored", False)
        return (*found, references, *peer_systems(config))
    if table == "table4":
        ablated = [_variant(config, token, label) for token, label in ABLATIONS.items()]
        return (own, *(row for row in ablated if row))
    if table == DECIDED:
        decided = [
            (_variant(config, token, label), name, flags)
            for name, (token, label, flags) in DECISIONS.items()
        ]
        named = (dataclasses.replace(r, name=n, overrides=f) for r, n, f in decided if r)
        return (own, *named)
    if table in SWEEPS:
        return sweep_systems(table, config)
    return (own,) if table == "fig4" else ()


def peer_systems(config: str) -> tuple[System, ...]:
    """The rows of other libraries."""
    return tuple(
        System(name, peer.label, config, kind="scored") for name, peer in catalogue.PEERS.items()
    )


def sweep_systems(table: str, config: str) -> tuple[System, ...]:
    """A figure's rows, one per value of its field; the default value is the method's own row."""
    field, values = SWEEPS[table]
    usual = getattr(_load(config).model, field)
    return tuple(
        System(METHOD, str(value), config)
        if value == usual
        else System(f"{field}{value}", str(value), config, {f"model.{field}": value})
        for value in sorted({*values, usual})
    )


def make_jobs(
    tables: Iterable[str],
    config: str,
    budget: budget_lib.Budget,
    *,
    extra_systems: Sequence[System] = (),
    overrides: Overrides | None = None,
) -> list[Job]:
    """Every job that the tables need, each once; a job stands after those it needs.

    Args:
      tables: Names out of `TABLES`.
      config: `FILE:variant` of the method itself.
      budget: Seeds, limits and days.
      extra_systems: Further systems of Table 2.
      overrides: Values of fields in every job.
    """
    jobs: dict[str, Job] = {}
    for table in sorted(tables, key=TABLES.index):
        main_table = table == "table2"
        chosen = [*systems_of(table, config), *(extra_systems if main_table else ())]
        days = budget.dropped_days if table in _ALL_DAYS else budget.dropped_days[:1]
        seeds = budget.seeds if main_table else budget.other_seeds
        for dropped in days:
            for seed in range(seeds):
                for system in chosen:
                    for job in _make_jobs(system, config, seed, dropped, budget):
                        more = {**job.overrides, **(overrides or {})}
                        jobs.setdefault(job.name, dataclasses.replace(job, overrides=more))
    return list(jobs.values())


def _make_jobs(
    system: System, config: str, seed: int, dropped: int, budget: budget_lib.Budget
) -> list[Job]:
    """The job of a system, after that of the teacher it needs."""
    if system.kind == "scored":
        return [_make_job(system, seed if system.is_seeded else 0, dropped, {})]
    experiment = _load(system.config)
    overrides = {**system.overrides, **budget.limit(experiment), "eval.references": False}
    if experiment.loss.distill_weight == 0:
        return [_make_job(system, seed, dropped, overrides)]
    teacher_seed = 0 if budget.shares_teacher else seed
    teacher = _make_teacher(system, config, teacher_seed, dropped, budget)
    if teacher_seed != seed:
        overrides["teacher.seed"] = teacher_seed
    if system.name != METHOD and teacher.system.name == _TEACHER:
        # It is judged once, in the job of the method itself.
        overrides["eval.teacher_test_queries"] = 0
    job = _make_job(system, seed, dropped, overrides)
    return [teacher, dataclasses.replace(job, teacher=teacher.name)]


def _make_teacher(
    system: System, config: str, seed: int, dropped: int, budget: budget_lib.Budget
) -> Job:
    """The job of a system's teacher: that of the method itself, or one that differs from it."""
    own = _make_job(
        System(_TEACHER, "teacher", config, kind="teacher"),
        seed,
        dropped,
        budget.limit(_load(config)),
    )
    other = _make_job(
        dataclasses.replace(
            system,
            name=f"{_TEACHER}_of_{system.name}",
            label=f"teacher of: {system.label}",
            kind="teacher",
        ),
        seed,
        dropped,
        {**system.overrides, **budget.limit(_load(system.config))},
    )
    first, second = (fingerprint.of_stage(j.experiment, stage="teacher") for j in (own, other))
    return own if first == second else other


def _make_job(system: System, seed: int, dropped: int, overrides: Overrides) -> Job:
    days = {"data.drop_last_days": dropped} if dropped else {}
    return Job(system, seed, {"seed": seed, **days, **overrides}, dropped)


def _variant(config: str, token: str, label: str) -> System | None:
    """The system of a variant with one more token; None where the file does not know the token."""
    extended = load.extend(config, token)
    try:
        _load(extended)
    except load.UsageError:
        return None
    return System(token, label, extended)


def _check_own(config: str) -> None:
    """Refuses what would stand under the method's name without being it."""
    _, variant = load.split(config)
    ablation = next(
        (token for token in variant.split(",") if token in registry.ABLATION_TOKENS), ""
    )
    model = _load(config).model
    if ablation or type(model) is not registry.MATCHERS[METHOD]:
        raise load.UsageError(
            f"--config {config}: expected {registry.LABELS[METHOD]}'s own configuration, got "
            f"{ablation or type(model).__name__}; other methods and ablations are rows of the "
            "tables anyway"
        )


@functools.lru_cache
def _load(config: str) -> schema.Experiment:
    return load.load_experiment(*load.split(config))
