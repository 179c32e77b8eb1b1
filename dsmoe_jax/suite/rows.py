"""Rows of tables: which command makes each of them; those of the README's results table."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One system of a table, run once per seed.

    Attributes:
      name: Short name, part of a cell's folder.
      label: What the table prints.
      config: `FILE:variant`, as on the command line.
      overrides: Further flags.
      teacher_of: Name of the row whose teacher this one is distilled from; empty trains its own.
      kind: "run" trains and reports, "teacher" trains a teacher for other rows, "scored" is a
        system without towers (`suite/scored.py`).
      is_seeded: Whether its numbers depend on the seed.
    """

    name: str
    label: str
    config: str
    overrides: tuple[str, ...] = ()
    teacher_of: str = ""
    kind: str = "run"
    is_seeded: bool = True


_FILE = "configs/kuairand.py"

README_ROWS = (
    Row("dsmoe", "**DSMOE**, distilled from the default teacher", f"{_FILE}:sample"),
    Row(
        "same_fields",
        "DSMOE, distilled from a teacher with the student's fields",
        f"{_FILE}:sample,teacher_fields=same",
    ),
    Row("no_distill", "DSMOE without distillation", f"{_FILE}:sample,no_distill"),
    Row(
        "row_sparse",
        "DSMOE without distillation, updates of single rows",
        f"{_FILE}:sample,no_distill",
        ("--config.optim.embedding=row_sparse", "--config.optim.min_rows=1"),
    ),
    Row("no_sap", "DSMOE without SAP", f"{_FILE}:sample,no_sap", teacher_of="dsmoe"),
    Row("no_dsbn", "DSMOE without DSBN", f"{_FILE}:sample,no_dsbn", teacher_of="dsmoe"),
    Row(
        "shared_item_tower",
        "DSMOE with one item index for all scenarios",
        f"{_FILE}:sample,shared_item_tower",
        teacher_of="dsmoe",
    ),
    Row("paper_exact", "DSMOE as printed (`paper_exact`)", f"{_FILE}:sample,paper_exact"),
    Row(
        "earlier_days",
        "DSMOE, distilled, two days earlier",
        f"{_FILE}:sample",
        ("--config.data.drop_last_days=2",),
    ),
)
