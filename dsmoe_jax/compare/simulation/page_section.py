"""Section on the simulation with known truth, from the records of finished jobs.

Owns the statistics over seeds and the words around them. A number is a mean over the seeds that
finished every arm of a world; a difference is paired by seed, that is by world, and has Student's
95 % interval. What an interval says is derived from its ends, never typed.
"""

import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import scipy.stats

from dsmoe_jax.compare import records
from dsmoe_jax.compare.report import formats, recall_table
from dsmoe_jax.compare.simulation import designs
from dsmoe_jax.config import fingerprint
from dsmoe_jax.config import load as load_lib
from dsmoe_jax.evaluation import metrics


class Found(NamedTuple):
    """One arm with one seed: its record, recall by scenario and macro, numbers of parameters."""

    record: records.Record
    recall: dict[str, Any]
    params: dict[str, int] | None


_ABOUT_ZERO = {"above": "above zero", "below": "below zero", "noise": "not told apart from zero"}
# Arms of a world by name, each in the order of seeds.
Finished = dict[str, list[Found]]


def load(published: pathlib.Path, worlds: Sequence[designs.World]) -> dict[str, Finished]:
    """What was found with the seeds that finished every arm; a world without one is absent."""
    found = {}
    for world in worlds:
        arms = {}
        for arm in world.arms:
            pattern = f"{world.name}-{arm.found_in or arm.name}-seed*.json"
            entries = records.load_all(published, pattern)
            arms[arm.name] = {record["seed"]: _find(world, arm, record) for record in entries}
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in arms.values())))
        if seeds:
            found[world.name] = {
                name: [by_seed[seed] for seed in seeds] for name, by_seed in arms.items()
            }
    return found


def _find(world: designs.World, arm: designs.Arm, record: records.Record) -> Found:
    if arm.kind == "teacher":
        return Found(record, record["teacher"], record["teacher"]["params"])
    name = arm.name if arm.kind == "truth" else f"{world.name}-{arm.name}"
    return Found(record, record["systems"][name], record.get("params"))


def section(finished: dict[str, Finished], worlds: Sequence[designs.World]) -> str:
    """The section's Markdown.

    Raises:
      ValueError: When no world is finished.
    """
    parts = [_describe(world, finished[world.name]) for world in worlds if world.name in finished]
    if not parts:
        raise ValueError(
            "simulation: expected a seed with every arm finished, found none; run "
            "`python -m dsmoe_jax.compare simulate` first"
        )
    return "\n\n".join(parts)


def student_interval(values: Sequence[float]) -> metrics.Interval:
    """Mean of independent values and 95 % interval of Student's t; NaN ends where there is one."""
    mean, reach = statistics.fmean(values), math.nan
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
        reach = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return metrics.Interval(mean, mean - reach, mean + reach)


def macro(found: Found) -> float:
    """Recall at the first cut-off, the unweighted mean over scenarios."""
    return float(found.recall["macro"][_metric(found)])


def tail(found: Found) -> float:
    """The mean over the smaller half of the scenarios by share of training examples."""
    rows = sorted(found.recall["scenarios"].values(), key=lambda row: row["share"])
    known = [row[_metric(found)] for row in rows[: len(rows) // 2]]
    return statistics.fmean(value for value in known if value is not None)


def _metric(found: Found) -> str:
    return f"recall@{found.record['k'][0]}"


def _describe(world: designs.World, finished: Finished) -> str:
    views: dict[str, Callable[[Found], float]] = {"macro": macro}
    if world.has_tail:
        views["tail"] = tail
    rows = []
    for arm in world.arms:
        seeds = finished[arm.name]
        cells = [recall_table.over_seeds(list(map(view, seeds))) for view in views.values()]
        params = seeds[0].params
        rows.append((arm.label, *cells, f"{params['dense']:,}" if params else ""))
    heads = ("", *views, "dense parameters")
    table = formats.Table(world.name, world.title, heads, formats.cells(rows))
    first = finished[world.arms[0].name]
    config = load_lib.load_config(load_lib.extend(designs.CONFIG, world.name))
    fields = fingerprint.as_dict(config)
    answers = [_answer(world, question, finished, views) for question in world.questions]
    return "\n\n".join(
        [
            f"### {world.title}",
            world.text.format(data=fields["data"], model=fields["model"]),
            formats.to_markdown(table),
            "\n".join(answers),
            _caption(world, first, finished),
        ]
    )


def _answer(
    world: designs.World,
    question: designs.Question,
    finished: Finished,
    views: dict[str, Callable[[Found], float]],
) -> str:
    label = {arm.name: arm.label.strip("*_").replace("**", "") for arm in world.arms}
    parts = []
    for name, view in views.items():
        pairs = zip(finished[question.first], finished[question.second], strict=True)
        differences = [view(one) - view(other) for one, other in pairs]
        interval = student_interval(differences)
        each = ", ".join(f"{100 * value:+.1f}" for value in differences)
        shown = f"{interval.points}, {_ABOUT_ZERO[interval.verdict]}"
        if math.isnan(interval.low):
            shown = f"{each} no interval, one seed says nothing about zero"
        parts.append(f"{name} {shown} (per seed {each})")
    return (
        f'- {question.text} "{label[question.first]}" minus "{label[question.second]}", in '
        f"points: {'; '.join(parts)}."
    )


def _caption(world: designs.World, first: list[Found], finished: Finished) -> str:
    record = first[0].record
    every = [found.record for seeds in finished.values() for found in seeds]
    seeds = ", ".join(str(found.record["seed"]) for found in first)
    queries = statistics.fmean(
        sum(row["queries"] for row in found.recall["scenarios"].values()) for found in first
    )
    seen = "removed" if record["seen_items_removed"] else "kept"
    small = "; tail: the smaller half of the scenarios" if world.has_tail else ""
    return (
        f"Test {_metric(first[0])} in %, mean ± standard deviation over seeds {seeds}, each with a "
        f"world of its own{small}; {record['candidates']:,} candidates, {queries:,.0f} queries a "
        f"world, items seen before are {seen}. Intervals: Student's, 95 %, over paired "
        f"differences. {records.join(every, 'device')}, {records.join(every, 'date')}. Made by "
        "`python -m dsmoe_jax.compare simulate` and `render simulation`."
    )
