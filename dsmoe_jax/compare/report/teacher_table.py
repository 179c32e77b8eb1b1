"""Teacher table: what they reach on sampled queries, and how much more that is than students.

Owns its layout. A teacher is evaluated in the job of the system that it teaches.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from dsmoe_jax.compare import estimates
from dsmoe_jax.compare.report import finished, formats, recall_table


def make(systems: Sequence[finished.System]) -> formats.Table | None:
    """Two rows for the teacher of every system whose jobs evaluated one; None without any."""
    own = finished.own(systems)
    k = recall_table.cutoffs_of(own)[0]
    columns = [*recall_table.scenarios_of(own), estimates.MACRO]
    rows = []
    for system in systems:
        teachers = [e.record["teacher"] for e in system.entries if e.record.get("teacher")]
        if system.kind == "run" and teachers:
            texts = [f"teacher of: {system.label}", *_recalls(teachers, f"recall@{k}", columns)]
            rows += [texts, ["minus its student", "", *_differences(teachers, columns)]]
    if not rows:
        return None
    note = (
        "Recall in % of teachers, which score every item, on sampled test queries, mean ± standard "
        "deviation over seeds. Minus its student: on the same queries, mean over seeds with the "
        "means of the ends of the runs' paired 95 % bootstrap intervals; runs share their queries, "
        "so that the interval of a mean is no wider."
    )
    heads = ("", f"validation recall@{k}", *(f"{name} @{k}" for name in columns))
    cells = tuple(tuple(map(formats.Value, row)) for row in rows)
    return formats.Table("teachers", "Teachers", heads, cells, (note,))


def _recalls(teachers: list[dict[str, Any]], metric: str, columns: Sequence[str]) -> Iterator[str]:
    summaries = [{**t["scenarios"], estimates.MACRO: t["macro"]} for t in teachers]
    cells = [[teacher["validation"]["macro"] for teacher in teachers]]
    cells += [[summary[column] for summary in summaries] for column in columns]
    for cell in cells:
        known = [row[metric] for row in cell if row[metric] is not None]
        yield recall_table.over_seeds(known)


def _differences(teachers: list[dict[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    for column in columns:
        found = [teacher["minus_student"][column] for teacher in teachers]
        ends = (statistics.fmean(t[end] for t in found) for end in estimates.Interval._fields)
        yield recall_table.points(estimates.Interval(*ends))
