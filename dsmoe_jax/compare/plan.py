"""What the comparison consists of: the rows of every table and figure, and their cells.

Owns which runs a table or a figure needs. A cell is one row with one seed, tested on some days; a
cell that several tables need is one cell. How cells are run is in `compare/runner.py`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence

from dsmoe_jax import main
from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import budget as budget_lib
from dsmoe_jax.compare import rows
from dsmoe_jax.config import fingerprint, load, schema
from dsmoe_jax.models import registry

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
# What the paper leaves open, or what this project decided otherwise: token, label and flags.
DECISIONS = {
    "shared_item_tower": ("shared_item_tower", "one item index for all scenarios", ()),
    "same_fields": ("teacher_fields=same", "taught by a teacher with its own fields alone", ()),
    "undistilled": (
        "no_distill,undistilled",
        "without distillation, with values searched for that",
        (),
    ),
    "row_sparse": (
        "no_distill,undistilled",
        "the same, with updates of single rows",
        ("--config.optim.embedding=row_sparse", "--config.optim.min_rows=1"),
    ),
    "paper_exact": ("paper_exact", "every value as printed", ()),
}
# Tables of recall that are made of all choices of test days.
_ALL_DAYS = ("table2", "table4")
# Values beside the default one, which the method's own row has.
SWEEPS = {"fig2": ("num_experts", (1, 2, 3, 4, 5)), "fig3": ("rank", (1, 2, 4, 8, 16))}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
      row: What is run.
      seed: Its seed.
      dropped_days: Days at the end of the log that are left out.
      arguments: The flags of the run, without its folders.
      teacher: Name of the cell whose teacher it takes; empty for a cell without one.
    """

    row: rows.Row
    seed: int
    dropped_days: int
    arguments: tuple[str, ...]
    teacher: str = ""

    @property
    def name(self) -> str:
        """Of its folder and its record."""
        return cell_name(self.row.name, self.seed, self.dropped_days)

    @functools.cached_property
    def experiment(self) -> schema.Experiment:
        """What its arguments resolve to."""
        return main.parse(["dsmoe_jax", *self.arguments]).experiment


def cell_name(row: str, seed: int, dropped_days: int) -> str:
    """Name of a cell: `perscen-seed1`, or `perscen-seed1-drop2` on earlier days."""
    return f"{row}-seed{seed}" + (f"-drop{dropped_days}" if dropped_days else "")


def rows_of(table: str, config: str) -> tuple[rows.Row, ...]:
    """The rows of a table or a figure, in its order; a configuration file may lack some of them.

    Args:
      table: One of `TABLES`.
      config: `FILE:variant` of the method's own row.

    Raises:
      overrides.UsageError: When the file or the variant is wrong, or another method's.
    """
    _check_own(config)
    own = rows.Row(METHOD, registry.LABELS[METHOD], config)
    if table in ("table2", "table3"):
        others = [
            _variant(config, name, registry.LABELS.get(name, name))
            for name in registry.METHOD_TOKENS
        ]
        found = [own, *(row for row in others if row)]
        if table == "table3":
            return tuple(found)
        references = rows.Row("references", "references", config, (), "scored", False)
        return (*found, references, *peer_rows(config))
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
        return sweep_rows(table, config)
    return (own,) if table == "fig4" else ()


def peer_rows(config: str) -> tuple[rows.Row, ...]:
    """The rows of other libraries."""
    return tuple(
        rows.Row(name, peer.label, config, kind="scored") for name, peer in catalogue.PEERS.items()
    )


def sweep_rows(table: str, config: str) -> tuple[rows.Row, ...]:
    """A figure's rows, one per value of its field; the default value is the method's own row."""
    field, values = SWEEPS[table]
    usual = getattr(_load(config).model, field)
    return tuple(
        rows.Row(METHOD, str(value), config)
        if value == usual
        else rows.Row(f"{field}{value}", str(value), config, (f"--config.model.{field}={value}",))
        for value in sorted({*values, usual})
    )


def make_cells(
    tables: Iterable[str],
    config: str,
    budget: budget_lib.Budget,
    *,
    extra_rows: Sequence[rows.Row] = (),
    flags: tuple[str, ...] = (),
) -> list[Cell]:
    """Every cell that the tables need, each once; a cell stands after those it needs.

    Args:
      tables: Names out of `TABLES`.
      config: `FILE:variant` of the method's own row.
      budget: Seeds, limits and days.
      extra_rows: Further rows of Table 2.
      flags: Further flags of every cell.
    """
    cells: dict[str, Cell] = {}
    for table in sorted(tables, key=TABLES.index):
        main_table = table == "table2"
        chosen = [*rows_of(table, config), *(extra_rows if main_table else ())]
        days = budget.dropped_days if table in _ALL_DAYS else budget.dropped_days[:1]
        seeds = budget.seeds if main_table else budget.other_seeds
        for dropped in days:
            for seed in range(seeds):
                for row in chosen:
                    for cell in _make_cells(row, config, seed, dropped, budget):
                        more = dataclasses.replace(cell, arguments=cell.arguments + flags)
                        cells.setdefault(cell.name, more)
    return list(cells.values())


def _make_cells(
    row: rows.Row, config: str, seed: int, dropped: int, budget: budget_lib.Budget
) -> list[Cell]:
    """The cell of a row, after that of the teacher it needs."""
    if row.kind == "scored":
        return [_make_cell(row, seed if row.is_seeded else 0, dropped, ())]
    experiment = _load(row.config)
    flags = (*row.overrides, *budget.limit(experiment), "--config.eval.references=False")
    if experiment.loss.distill_weight == 0:
        return [_make_cell(row, seed, dropped, flags)]
    teacher_seed = 0 if budget.shares_teacher else seed
    teacher = _make_teacher(row, config, teacher_seed, dropped, budget)
    if teacher_seed != seed:
        flags += (f"--config.teacher.seed={teacher_seed}",)
    if row.name != METHOD and teacher.row.name == _TEACHER:
        # It is judged once, in the cell of the method itself.
        flags += ("--config.eval.teacher_test_queries=0",)
    cell = _make_cell(row, seed, dropped, flags)
    return [teacher, dataclasses.replace(cell, teacher=teacher.name)]


def _make_teacher(
    row: rows.Row, config: str, seed: int, dropped: int, budget: budget_lib.Budget
) -> Cell:
    """The cell of a row's teacher: the one of the method's own row, or one that differs from it."""
    own = _make_cell(
        rows.Row(_TEACHER, "teacher", config, kind="teacher"),
        seed,
        dropped,
        budget.limit(_load(config)),
    )
    name = f"{_TEACHER}_of_{row.name}"
    other = _make_cell(
        rows.Row(name, f"teacher of: {row.label}", row.config, row.overrides, kind="teacher"),
        seed,
        dropped,
        (*row.overrides, *budget.limit(_load(row.config))),
    )
    first, second = (fingerprint.of_stage(c.experiment, stage="teacher") for c in (own, other))
    return own if first == second else other


def _make_cell(row: rows.Row, seed: int, dropped: int, flags: tuple[str, ...]) -> Cell:
    days = (f"--config.data.drop_last_days={dropped}",) if dropped else ()
    arguments = (f"--config={row.config}", f"--config.seed={seed}", *days, *flags)
    return Cell(row, seed, dropped, arguments)


def _variant(config: str, token: str, label: str) -> rows.Row | None:
    """The row of a variant with one more token; None where the file does not know the token."""
    file, _, variant = config.partition(":")
    extended = f"{file}:{variant},{token}" if variant else f"{file}:{token}"
    try:
        _load(extended)
    except load.UsageError:
        return None
    return rows.Row(token, label, extended)


def _check_own(config: str) -> None:
    """Refuses what would stand under the method's name without being it."""
    _, _, variant = config.partition(":")
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
    file, _, variant = config.partition(":")
    return load.load_experiment(str(pathlib.Path(file)), variant)
