"""Recall tables: the paper's Table 2 and Table 4, ours beside the paper's, and that of teachers.

Owns their layout and which cells are marked. The best and the second best mean of a column are
marked among all rows but the random one; every row is compared with DSMOE on the same queries.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsmoe_jax.compare import estimates
from dsmoe_jax.compare.report import finished, formats, paper
from dsmoe_jax.evaluation import metrics

LEGEND = (
    "Bold: best of the column; underlined: second best. Against DSMOE on the same queries, a "
    "paired bootstrap of queries within their scenario (95 %, of recall averaged over seeds, each "
    "comparison by itself): ▲ above, ▼ below, ≈ within noise."
)
# Cut-off and scenario.
Column = tuple[int, str]
# Not told apart from nothing.
_UNRANKED = "random"


@dataclasses.dataclass(frozen=True)
class Compared:
    """A system, its recall and its intervals by cut-off and scenario.

    The intervals are of this minus DSMOE, empty for DSMOE itself.
    """

    system: finished.System
    estimates: Mapping[int, Mapping[str, estimates.Estimate]]
    intervals: Mapping[int, Mapping[str, metrics.Interval]]


def compare(systems: Sequence[finished.System]) -> list[Compared]:
    """Compares every system that has finished jobs with DSMOE, which must have some."""
    own = finished.own(systems)
    cutoffs, scenarios = cutoffs_of(own), scenarios_of(own)
    base = {k: estimates.pool(own, k) for k in cutoffs}
    found = []
    for system in systems:
        if not system.entries:
            continue
        pooled = {k: estimates.pool(system, k) for k in cutoffs}
        intervals = {}
        if system.name != own.name:
            intervals = {k: estimates.compare(pooled[k], base[k], scenarios) for k in cutoffs}
        values = {k: estimates.estimate(pooled[k], scenarios) for k in cutoffs}
        found.append(Compared(system, values, intervals))
    return found


def cutoffs_of(own: finished.System) -> list[int]:
    """The cut-offs of a comparison."""
    return [int(k) for k in own.entries[0].record["k"]]


def scenarios_of(own: finished.System) -> list[str]:
    """The scenarios of a comparison."""
    return list(own.entries[0].summary["scenarios"])


def make(
    name: str, title: str, systems: Sequence[finished.System], *, with_paper: bool = True
) -> formats.Table:
    """A table of recall, one row per system, below it the paper's; what is not finished says so.

    Raises:
      ValueError: When DSMOE, which must be among the systems, has no finished job.
    """
    compared = compare(systems)
    by_name = {entry.system.name: entry for entry in compared}
    own = finished.own(systems)
    columns = [
        (k, scenario) for k in cutoffs_of(own) for scenario in (*scenarios_of(own), estimates.MACRO)
    ]
    ranks = {column: _rank(compared, column) for column in columns}
    rows = []
    for system in systems:
        label = formats.Value(system.label)
        entry = by_name.get(system.name)
        if entry is None:
            rows.append((label, *[formats.Value("not run")] * (len(columns) + 1)))
            continue
        cells = [_cell(entry, column, ranks[column]) for column in columns]
        rows.append((label, formats.Value(_validation(system)), *cells))
    if with_paper:
        rows += _paper_rows(own, systems, columns)
    notes = (_caption(own, compared), LEGEND)
    records = [record for entry in compared for record in _records(entry, columns)]
    return formats.Table(name, title, _heads(columns), tuple(rows), notes, tuple(records))


def make_teachers(systems: Sequence[finished.System]) -> formats.Table | None:
    """Two rows for the teacher of every system whose jobs evaluated one; None without any.

    A teacher is evaluated in the job of the system that it teaches.
    """
    own = finished.own(systems)
    columns = [(cutoffs_of(own)[0], name) for name in (*scenarios_of(own), estimates.MACRO)]
    rows = []
    for system in systems:
        teachers = [e.record["teacher"] for e in system.entries if e.record.get("teacher")]
        if system.kind == "run" and teachers:
            rows.append((f"teacher of: {system.label}", *_recalls(teachers, columns)))
            rows.append(("minus its student", "", *_differences(teachers, columns)))
    if not rows:
        return None
    note = (
        "Recall in % of teachers, which score every item, on sampled test queries, mean ± standard "
        "deviation over seeds. Minus its student: on the same queries, mean over seeds with the "
        "means of the ends of the runs' paired 95 % bootstrap intervals; runs share their queries, "
        "so that the interval of a mean is no wider."
    )
    return formats.Table("teachers", "Teachers", _heads(columns), formats.cells(rows), (note,))


def percent(value: float) -> str:
    """A fraction in percent, with one digit."""
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"


def mean_and_spread(mean: float, spread: float) -> str:
    """Fractions in percent; the spread is left out where it is NaN."""
    return percent(mean) + ("" if math.isnan(spread) else f" ± {percent(spread)}")


def over_seeds(values: Sequence[float]) -> str:
    """Mean and standard deviation of fractions, in percent."""
    mean = statistics.fmean(values) if values else math.nan
    return mean_and_spread(mean, statistics.stdev(values) if len(values) > 1 else math.nan)


def _heads(columns: Sequence[Column]) -> tuple[str, ...]:
    names = (f"{scenario} @{k}" for k, scenario in columns)
    return ("", f"validation recall@{columns[0][0]}", *names)


def _recalls(teachers: Sequence[dict[str, Any]], columns: Sequence[Column]) -> Iterator[str]:
    metric = f"recall@{columns[0][0]}"
    cells = [[teacher["validation"]["macro"] for teacher in teachers]]
    summaries = [{**t["scenarios"], estimates.MACRO: t["macro"]} for t in teachers]
    cells += [[summary[scenario] for summary in summaries] for _, scenario in columns]
    for cell in cells:
        yield over_seeds([row[metric] for row in cell if row[metric] is not None])


def _differences(teachers: Sequence[dict[str, Any]], columns: Sequence[Column]) -> Iterator[str]:
    for _, scenario in columns:
        found = [teacher["minus_student"][scenario] for teacher in teachers]
        ends = (statistics.fmean(t[end] for t in found) for end in metrics.Interval._fields)
        yield metrics.Interval(*ends).points


def _rank(compared: Sequence[Compared], column: Column) -> dict[str, str]:
    """The best and the second best system of a column."""
    k, scenario = column
    means = {
        entry.system.name: entry.estimates[k][scenario].mean
        for entry in compared
        if entry.system.name != _UNRANKED and not math.isnan(entry.estimates[k][scenario].mean)
    }
    order = sorted(means, key=lambda name: -means[name])
    return dict(zip(order, ("best", "second"), strict=False))


def _cell(entry: Compared, column: Column, ranks: Mapping[str, str]) -> formats.Value:
    k, scenario = column
    value = entry.estimates[k][scenario]
    interval = entry.intervals[k][scenario] if entry.intervals else None
    return formats.Value(
        mean_and_spread(value.mean, value.spread),
        ranks.get(entry.system.name, ""),
        interval.verdict if interval else "",
    )


def _validation(system: finished.System) -> str:
    """Macro recall at the first cut-off on validation days: over seeds, then over test days."""
    metric = f"recall@{system.entries[0].record['k'][0]}"
    means = (
        statistics.fmean(e.summary["validation"]["macro"][metric] for e in by_seed.values())
        for by_seed in system.by_day.values()
    )
    return percent(statistics.fmean(means))


def _paper_rows(
    own: finished.System, systems: Sequence[finished.System], columns: Sequence[Column]
) -> list[tuple[formats.Value, ...]]:
    """What the paper prints of the rows' methods, as far as it is known here."""
    printed = paper.RECALL.get(own.entries[0].record["dataset"], {})
    rows = []
    for system in systems:
        texts = [_printed(printed.get(system.name, {}), *column) for column in columns]
        if any(texts):
            rows.append(tuple(map(formats.Value, (paper.label(system.label), "", *texts))))
    return rows


def _printed(values: Mapping[str, Mapping[int, float]], k: int, scenario: str) -> str:
    """One number of the paper, or its macro mean where all scenarios are known; else nothing."""
    known = [entry[k] for entry in values.values() if k in entry]
    if scenario == estimates.MACRO and known and len(known) == len(values):
        return f"{statistics.fmean(known):.1f}"
    return f"{values[scenario][k]:.1f}" if k in values.get(scenario, {}) else ""


def _records(entry: Compared, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """One CSV line per number."""
    heads = ("row", "scenario", "k", "seeds", "recall", "sd_over_seeds", "se_over_queries")
    found = []
    for k, scenario in columns:
        mean, spread, seeds, error = entry.estimates[k][scenario]
        interval = entry.intervals[k][scenario] if entry.intervals else ("", "", "")
        values = (entry.system.name, scenario, k, seeds, mean, spread, error, *interval)
        found.append(dict(zip((*heads, "minus_dsmoe", "low", "high"), values, strict=True)))
    return found


def _caption(own: finished.System, compared: Sequence[Compared]) -> str:
    records = [entry.record for entry in own.entries]
    first = records[0]
    days = "; ".join(
        ", ".join(f"{part} {r['days'][0]}..{r['days'][-1]}" for part, r in split.items())
        for split in {str(record["split"]): record["split"] for record in records}.values()
    )
    k = cutoffs_of(own)[0]
    [mine] = [entry.estimates[k] for entry in compared if entry.system.name == own.name]
    errors = ", ".join(f"{name} {percent(value.error)}" for name, value in mine.items())
    seen = "removed" if first["seen_items_removed"] else "kept"
    by_day = [set(by_seed) for by_seed in own.by_day.values()]
    seeds = ", ".join(map(str, sorted(set.union(*by_day))))
    everywhere = ", ".join(map(str, sorted(set.intersection(*by_day))))
    if everywhere != seeds:
        seeds += f"; on all days: {everywhere or 'none'}"
    on_days = " on all days" if len(by_day) > 1 else ""
    fewer = [
        f"{entry.system.label} {entry.estimates[k][estimates.MACRO].seeds}"
        for entry in compared
        if 1 < entry.estimates[k][estimates.MACRO].seeds < mine[estimates.MACRO].seeds
    ]
    shorter = f"; fewer: {', '.join(fewer)}" if fewer else ""
    return (
        f"Recall in % on test days, mean ± standard deviation over seeds (DSMOE: {seeds}"
        f"{shorter}; no ±: one seed{on_days}, or nothing random). {first['dataset']}; {days}; "
        f"{first['candidates']:,} candidates in every scenario; items seen before are {seen}. "
        f"Standard error of DSMOE's recall@{k} over queries: {errors}."
    )
