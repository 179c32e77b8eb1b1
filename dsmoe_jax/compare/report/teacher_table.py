"""A table of teachers: what they reach on sampled queries, and how much more that is than students.

Owns its layout. A teacher is judged in the cell of the row that it teaches.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from dsmoe_jax.compare import estimates
from dsmoe_jax.compare.report import finished, formats, recall_table


def make(systems: Sequence[finished.System]) -> formats.Table | None:
    """Two rows for the teacher of every system whose cells judged one; None without any.

    Args:
      systems: Rows of tables, each once; DSMOE must be among them.
    """
    taught = [
        (system, [e.record["teacher"] for e in system.entries if e.record.get("teacher")])
        for system in systems
        if system.kind == "run"
    ]
    taught = [(system, teachers) for system, teachers in taught if teachers]
    if not taught:
        return None
    own = finished.own(systems)
    k = recall_table.cutoffs_of(own)[0]
    columns = [*recall_table.scenarios_of(own), estimates.MACRO]
    heads = ("", f"validation recall@{k}", *(f"{name} @{k}" for name in columns))
    rows = []
    for system, teachers in taught:
        rows.append(_recalls(system, teachers, f"recall@{k}", columns))
        rows.append(_differences(teachers, columns))
    note = (
        "Recall in % of teachers, which score every item, on sampled test queries, mean ± standard "
        "deviation over seeds. Minus its student: on the same queries, mean over seeds with the "
        "means of the ends of the runs' paired 95 % bootstrap intervals; runs share their queries, "
        "so that the interval of a mean is no wider."
    )
    return formats.Table("teachers", "Teachers", heads, tuple(rows), (note,))


def _recalls(
    system: finished.System, teachers: list[dict[str, Any]], metric: str, columns: Sequence[str]
) -> tuple[formats.Value, ...]:
    cells = [[teacher["validation"]["macro"][metric] for teacher in teachers]]
    cells += [
        [(t["macro"] if c == estimates.MACRO else t["scenarios"][c])[metric] for t in teachers]
        for c in columns
    ]
    texts = [f"teacher of: {system.label}", *map(_mean_and_spread, cells)]
    return tuple(map(formats.Value, texts))


def _differences(
    teachers: list[dict[str, Any]], columns: Sequence[str]
) -> tuple[formats.Value, ...]:
    texts = ["minus its student", ""]
    for column in columns:
        mean, low, high = (
            100 * statistics.fmean(teacher["minus_student"][column][end] for teacher in teachers)
            for end in ("difference", "low", "high")
        )
        texts.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    return tuple(map(formats.Value, texts))


def _mean_and_spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    spread = f" ± {100 * statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{100 * statistics.fmean(known):.1f}{spread}"
