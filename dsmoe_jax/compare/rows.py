"""Rows of tables: which command makes each of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One system of a table, run once per seed.

    Attributes:
      name: Short name, part of a cell's folder.
      label: What the table prints.
      config: `FILE:variant`, as on the command line.
      overrides: Further flags.
      kind: "run" trains and reports, "teacher" trains a teacher for other rows, "scored" is a
        system without towers (`compare/baseline_job.py`).
      is_seeded: Whether its numbers depend on the seed.
    """

    name: str
    label: str
    config: str
    overrides: tuple[str, ...] = ()
    kind: str = "run"
    is_seeded: bool = True
