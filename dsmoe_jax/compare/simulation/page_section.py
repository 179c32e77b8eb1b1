"""The README's section on planted worlds, from the records of finished cells.

Owns the statistics over seeds and the words around them. A number is a mean over the seeds that
finished every arm of a world; a difference is paired by seed, that is by world, and has Student's
95 % interval. What an interval says is derived from its ends, never typed.
"""

import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import scipy.stats

from dsmoe_jax.compare.simulation import designs

Record = dict[str, Any]
# Records of a world by arm, in the order of seeds.
Finished = dict[str, list[Record]]


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval; NaN ends where there is one value."""

    mean: float
    low: float
    high: float


def load(published: pathlib.Path, worlds: Sequence[designs.World]) -> dict[str, Finished]:
    """Records of the seeds that finished every arm; a world without one is absent."""
    found = {}
    for world in worlds:
        records = {
            arm.name: {
                record["seed"]: record
                for path in published.glob(f"{world.name}-{arm.name}-seed*.json")
                for record in [json.loads(path.read_text())]
            }
            for arm in world.arms
        }
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in records.values())))
        if seeds:
            found[world.name] = {
                name: [by_seed[seed] for seed in seeds] for name, by_seed in records.items()
            }
    return found


def section(finished: dict[str, Finished], worlds: Sequence[designs.World]) -> str:
    """The section's Markdown.

    Raises:
      ValueError: When no world is finished.
    """
    parts = [_describe(world, finished[world.name]) for world in worlds if world.name in finished]
    if not parts:
        raise ValueError(
            "planted worlds: expected a seed with every arm finished, found none; run "
            "`python -m dsmoe_jax.compare planted` first"
        )
    return "\n\n".join(parts)


def student_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of Student's t over independent values, at least one."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def macro(record: Record) -> float:
    """Recall at the first cut-off, the unweighted mean over scenarios."""
    return float(record["macro"][_metric(record)])


def tail(record: Record) -> float:
    """The mean over the smaller half of the scenarios by share of training examples."""
    rows = sorted(record["scenarios"].values(), key=lambda row: row["share"])
    known = [row[_metric(record)] for row in rows[: len(rows) // 2]]
    return statistics.fmean(value for value in known if value is not None)


def _metric(record: Record) -> str:
    return f"recall@{record['k'][0]}"


def _describe(world: designs.World, finished: Finished) -> str:
    views = {"macro": macro, "tail": tail} if world.has_tail else {"macro": macro}
    heads = ["", *views, "dense parameters"]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for arm in world.arms:
        records = finished[arm.name]
        cells = [_mean_and_spread([view(r) for r in records]) for view in views.values()]
        params = records[0]["params"]
        lines.append(_line([arm.label, *cells, f"{params['dense']:,}" if params else ""]))
    first = finished[world.arms[0].name]
    answers = [_answer(world, question, finished, views) for question in world.questions]
    return "\n\n".join(
        [
            f"### {world.title}",
            world.text.format(data=first[0]["data"], model=first[0]["model"]),
            "\n".join(lines),
            "\n".join(answers),
            _caption(world, first, finished),
        ]
    )


def _answer(
    world: designs.World,
    question: designs.Question,
    finished: Finished,
    views: dict[str, Any],
) -> str:
    label = {arm.name: arm.label.strip("*_").replace("**", "") for arm in world.arms}
    parts = []
    for name, view in views.items():
        pairs = zip(finished[question.first], finished[question.second], strict=True)
        differences = [100 * (view(one) - view(other)) for one, other in pairs]
        mean, low, high = student_interval(differences)
        each = ", ".join(f"{value:+.1f}" for value in differences)
        ends = "no interval" if math.isnan(low) else f"[{low:+.1f}, {high:+.1f}]"
        parts.append(f"{name} {mean:+.1f} {ends}, {verdict(low, high)} (per seed {each})")
    return (
        f'- {question.text} "{label[question.first]}" minus "{label[question.second]}", in '
        f"points: "
        f"{'; '.join(parts)}."
    )


def verdict(low: float, high: float) -> str:
    """What an interval says about zero."""
    if math.isnan(low):
        return "one seed says nothing about zero"
    if low > 0:
        return "above zero"
    return "below zero" if high < 0 else "not told apart from zero"


def _caption(world: designs.World, first: list[Record], finished: Finished) -> str:
    record = first[0]
    every = [entry for records in finished.values() for entry in records]
    seeds = ", ".join(str(entry["seed"]) for entry in first)
    queries = statistics.fmean(
        sum(row["queries"] for row in entry["scenarios"].values()) for entry in first
    )
    seen = "removed" if record["seen_items_removed"] else "kept"
    small = "; tail: the smaller half of the scenarios" if world.has_tail else ""
    return (
        f"Test {_metric(record)} in %, mean ± standard deviation over seeds {seeds}, each with a "
        f"world of its own{small}; {record['candidates']:,} candidates, {queries:,.0f} queries a "
        f"world, items seen before are {seen}. Intervals: Student's, 95 %, over paired "
        f"differences. {_join(every, 'device')}, {_join(every, 'date')}. Made by "
        "`python -m dsmoe_jax.compare planted` and `render planted`."
    )


def _join(records: list[Record], key: str) -> str:
    return ", ".join(sorted({record[key] for record in records}))


def _mean_and_spread(values: list[float]) -> str:
    percent = [100 * value for value in values]
    spread = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.fmean(percent):.1f}{spread}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
