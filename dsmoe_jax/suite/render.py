"""Markdown tables from the records of finished cells.

Owns the layout and the statistics over seeds: a number is the mean over seeds, with their standard
deviation where there are several; nothing is typed but the paper's printed values.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from dsmoe_jax.suite import finished, rows

RESULTS, PLANTED, METHODS = "results", "planted", "methods"

# arXiv 2601.02368, Table 2, KuaiRand-Pure, Recall@50: other rows and another, unknown split.
PAPER_RECALL = {"K1": 0.189, "K2": 0.310, "K3": 0.203, "K4": 0.219}

_COMPARED = (
    "Teacher minus student on the same test queries, in points, mean over seeds with the means of "
    "the ends of the runs' paired 95 % bootstrap intervals (runs share their queries, so that the "
    "interval of a mean is no wider), and how many intervals of single runs lie wholly below zero:"
)


def load(published: pathlib.Path, table: tuple[rows.Row, ...]) -> dict[str, list[dict[str, Any]]]:
    """Records by row name, in the order of seeds; a row without finished cells is absent."""
    found = {}
    for row in table:
        paths = sorted(published.glob(f"{row.name}-seed*.json"))
        if paths:
            found[row.name] = [json.loads(path.read_text()) for path in paths]
    return found


def results_table(
    records: dict[str, list[dict[str, Any]]],
    table: tuple[rows.Row, ...],
    peers: Sequence[finished.System] = (),
) -> str:
    """The README's tables: validation macro, then test recall per scenario and macro, in %.

    Rows that were judged on other days are a table of their own, with the reference rows and the
    peers of those days; rows without finished cells are in the first.

    Raises:
      ValueError: When there are no records.
    """
    if not records:
        raise ValueError("results table: expected finished cells, found none; run the suite first")
    splits = {name: _split_of(entries[0]) for name, entries in records.items()}
    first = next(iter(splits.values()))
    parts = []
    for split in dict.fromkeys(splits.values()):
        group = tuple(row for row in table if splits.get(row.name, first) == split)
        known = {row.name: records[row.name] for row in group if row.name in records}
        same_days = [
            dataclasses.replace(peer, entries=entries)
            for peer in peers
            if (entries := tuple(e for e in peer.entries if _split_of(e.record) == split))
        ]
        parts.append(_table(known, group, same_days, with_paper=split == first))
    return "\n\n".join(parts)


def _split_of(record: dict[str, Any]) -> str:
    """The days of a record and their examples, to be compared."""
    return json.dumps(record["split"])


def _table(
    records: dict[str, list[dict[str, Any]]],
    table: tuple[rows.Row, ...],
    peers: Sequence[finished.System],
    with_paper: bool,
) -> str:
    first = next(iter(records.values()))[0]
    metric = f"recall@{first['k'][0]}"
    scenarios = list(first["scenarios"])
    columns = (metric, scenarios)
    heads = ["", "validation macro", *[f"test {name}" for name in scenarios], "test macro"]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for name, summary in first["references"].items():
        lines.append(_entry(name, [summary], *columns))
    for peer in peers:
        label = f"{peer.label} (seed {', '.join(str(entry.seed) for entry in peer.entries)})"
        lines.append(_entry(label, [entry.summary for entry in peer.entries], *columns))
    compared = []
    for row in table:
        if row.name in records:
            lines.append(_entry(row.label, records[row.name], *columns))
        else:
            lines.append(_line([row.label, *["not run yet"] * (len(heads) - 1)]))
        taught = [r["teacher"] for r in records.get(row.name, []) if r["teacher"]]
        if taught and not row.teacher_of:
            label = row.label.replace("**", "")
            lines.append(_entry(f"_teacher of: {label} (sampled queries)_", taught, *columns))
            differences = [teacher[f"minus_student_{metric}"] for teacher in taught]
            compared.append(f"- {label}: {_compare_teacher(differences, scenarios)}")
    if with_paper:
        paper = [
            f"{100 * PAPER_RECALL[name]:.1f}" if name in PAPER_RECALL else "" for name in scenarios
        ]
        mean = 100 * statistics.mean(PAPER_RECALL.values())
        lines.append(_line(["paper, full data, unknown split", "", *paper, f"{mean:.1f}"]))
    lines += ["", _caption(first, records, metric)]
    if compared:
        lines += ["", _COMPARED, "", *compared]
    return "\n".join(lines)


def _compare_teacher(differences: list[dict[str, Any]], scenarios: list[str]) -> str:
    """Teacher minus student per scenario, and how many runs' intervals lie below zero."""
    texts = []
    for name in scenarios:
        mean, low, high = (
            100 * statistics.mean(difference[name][key] for difference in differences)
            for key in ("difference", "low", "high")
        )
        texts.append(f"{name} {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    intervals = [difference[name] for difference in differences for name in scenarios]
    below = sum(interval["high"] < 0 for interval in intervals)
    return f"{', '.join(texts)}; single runs below zero: {below} of {len(intervals)}"


def _entry(label: str, summaries: list[dict[str, Any]], metric: str, scenarios: list[str]) -> str:
    cells = [
        [summary["validation"]["macro"][metric] for summary in summaries],
        *[[summary["scenarios"][name][metric] for summary in summaries] for name in scenarios],
        [summary["macro"][metric] for summary in summaries],
    ]
    return _line([label, *[_mean_and_spread(values) for values in cells]])


def _mean_and_spread(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "n/a"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def _caption(first: dict[str, Any], records: dict[str, list[dict[str, Any]]], metric: str) -> str:
    seeds = sorted({record["seed"] for entries in records.values() for record in entries})
    spread = f"seed {seeds[0]} alone"
    if len(seeds) > 1:
        spread = f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
        if any(len(entries) == 1 for entries in records.values()):
            spread += ", where there is no ± one seed or nothing random"
    errors = ", ".join(
        f"{name} {100 * entry[f'{metric}_se']:.1f}" for name, entry in first["scenarios"].items()
    )
    split = first["split"]
    days = "; ".join(
        f"{name} {entry['days'][0]}..{entry['days'][-1]}" for name, entry in split.items()
    )
    seen = "removed" if first["seen_items_removed"] else "kept"
    every = [record for entries in records.values() for record in entries]
    devices = ", ".join(sorted({record["device"] for record in every}))
    dates = sorted({record["date"] for record in every})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        f"{metric.capitalize()} in %, {spread}. {first['dataset']}; {days}; "
        f"{first['candidates']:,} "
        f"candidates in every scenario; items seen before are {seen}. Standard error over test "
        f"queries: {errors}. Made by `python -m dsmoe_jax.suite render` from "
        f"`dsmoe_jax/suite/published/`; {devices}, {when}."
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
