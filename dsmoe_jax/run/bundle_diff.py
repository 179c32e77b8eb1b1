"""Difference of two bundles: facts, vocabularies, lists of the same users, recall.

Owns what is compared, as tables of texts; `diff_page.py` shows them. Users, items and values are
compared by their raw values, so that the bundles may be of different data.

Letters: Q queries, T retrieved list length.
"""

import collections
import datetime
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dsmoe_jax import features, runlog
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import metrics
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import parity, requests, retriever

# Probe users, and the length of their lists.
_USERS, _LENGTH = 300, 100
# Items and values that are named.
_MOST_NAMED = 8
# Queries asked at once.
_BLOCK = 512


class Table(NamedTuple):
    """One part of a difference.

    Attributes:
      title: Of the table.
      note: A sentence on what the numbers are, or why there are none.
      header: Names of the columns.
      rows: Texts.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def compare(
    before: retriever.Retriever,
    after: retriever.Retriever,
    *,
    users: int = _USERS,
    k: int = _LENGTH,
) -> list[Table]:
    """The difference of two bundles, of `after` from `before`.

    Args:
      before: The older bundle, A.
      after: The newer one, B.
      users: Probe users, of those that both know.
      k: Length of their lists.

    Raises:
      ValueError: When they have no scenario or no user in common.
    """
    shared = [name for name in before.scenarios if name in after.scenarios]
    if not shared:
        raise ValueError(
            f"{after.bundle.root}: expected a scenario of {', '.join(before.scenarios)}, got "
            f"{', '.join(after.scenarios)}"
        )
    tables = [_compare_facts(before.bundle, after.bundle), _compare_vocabularies(before, after)]
    tables += _compare_lists(before, after, shared, users, k)
    tables.append(_compare_recall(before.bundle.manifest, after.bundle.manifest))
    if before.bundle.has("test_queries") and after.bundle.has("test_queries"):
        tables.append(_compare_queries(before, after, shared))
    return tables


def _compare_facts(before: bundle_lib.Bundle, after: bundle_lib.Bundle) -> Table:
    """Facts of the manifests that differ."""
    one, other = _list_facts(before), _list_facts(after)
    names = dict.fromkeys([*one, *other])
    rows = [
        (name, one.get(name, "-"), other.get(name, "-"))
        for name in names
        if one.get(name) != other.get(name)
    ]
    sides = [_list_features(bundle).items() for bundle in (before, after)]
    if sides[0] != sides[1]:
        alone = [
            ", ".join(f"{name} {length}".strip() for name, length in sorted(one - other))
            for one, other in (sides, sides[::-1])
        ]
        rows.append(("features read by one alone", alone[0] or "-", alone[1] or "-"))
    same = [name for name in names if one.get(name) == other.get(name)]
    note = f"The same in both: {', '.join(same)}." if same else ""
    return Table("What differs", note, ("", "A", "B"), rows)


def _list_facts(bundle: bundle_lib.Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    num_scenarios, num_rows, dim = bundle.load("item_vectors").shape
    until_s = manifest["known_until_s"]
    until = datetime.datetime.fromtimestamp(until_s, datetime.UTC)
    return {
        "method": manifest["method"],
        "variant": manifest["variant"],
        "data set": manifest["dataset"],
        "data": manifest["data_hash"][:12],
        "configuration": manifest["config_hash"],
        "date": manifest["date"],
        **manifest["versions"],
        "scenarios": ", ".join(bundle.scenarios),
        "item vectors": f"{num_rows - 1:,} of {dim} numbers, {num_scenarios} per item",
        "towers": manifest["towers"]["kind"],
        "users known until": f"{until:%Y-%m-%d %H:%M} UTC" if until_s else "their last event",
        "lists leave out": manifest["remove_seen"],
        "size": f"{sum(e['bytes'] for e in manifest['files'].values()) / 1e6:.1f} MB",
    }


def _list_features(bundle: bundle_lib.Bundle) -> dict[str, str]:
    """Features and sequences that the model reads, with the longest window of a sequence."""
    spec = bundle.spec
    groups = (*features.GROUPS, "sequences")
    read = [feature for group in groups for feature in getattr(spec, group)]
    return {feature.name: f"{getattr(feature, 'max_len', '')}" for feature in read}


def _compare_vocabularies(before: retriever.Retriever, after: retriever.Retriever) -> Table:
    """Users, items and values that came and went."""
    rows = []
    values = [_list_values(served) for served in (before, after)]
    for name in dict.fromkeys(itertools.chain(*values)):
        one, other = (set(part.get(name, ())) for part in values)
        added, removed = other - one, one - other
        if added or removed:
            named = (_name(added), _name(removed))
            rows.append((name, f"{len(one):,}", f"{len(other):,}", *named))
    note = "" if rows else "Users, items and values are the same."
    return Table("Vocabulary", note, ("", "in A", "in B", "added", "removed"), rows)


def _list_values(served: retriever.Retriever) -> dict[str, list[Any]]:
    vocabularies = {
        name: vocabulary.decode(np.arange(1, len(vocabulary) + 1))
        for name, vocabulary in served.encoder.vocabularies.items()
    }
    return {"users": served.encoder.known_users(), "items": served.item_ids, **vocabularies}


def _compare_lists(
    before: retriever.Retriever,
    after: retriever.Retriever,
    shared: Sequence[str],
    users: int,
    k: int,
) -> list[Table]:
    """Lists of users that both know: overlap and drift, and the items behind it."""
    known = set(after.encoder.known_users())
    chosen = parity.choose_users([u for u in before.encoder.known_users() if u in known], users)
    overlaps: list[tuple[str, ...]] = []
    moved: list[tuple[str, ...]] = []
    for name in shared:
        pairs = [
            served.retrieve({requests.USER: chosen}, name, served.want(k))
            for served in (before, after)
        ]
        share, entered, left = [], collections.Counter[Any](), collections.Counter[Any]()
        drift: list[float] = []
        for one, other in zip(*pairs, strict=True):
            score_of = dict(zip(one.item_ids, one.scores, strict=True))
            both = {
                i: s for i, s in zip(other.item_ids, other.scores, strict=True) if i in score_of
            }
            share.append(len(both) / max(len(one.item_ids), len(other.item_ids), 1))
            drift += [score - score_of[item] for item, score in both.items()]
            entered.update(set(other.item_ids) - score_of.keys())
            left.update(score_of.keys() - set(other.item_ids))
        overlaps.append((name, f"{100 * np.mean(share):.1f} %", *_describe_drift(drift)))
        moved.append((name, _name_counts(entered), _name_counts(left)))
    note = (
        f"{len(chosen)} users that both know, each list as its bundle serves it. Drift is the "
        "score in B minus that in A, of items in both lists."
    )
    header = ("", f"overlap@{k}", "mean drift", "mean size of drift")
    return [
        Table(f"Top {k}", note, header, overlaps),
        Table(
            f"Items that came into the top {k}, and that left it",
            "The most frequent ones, with the number of users.",
            ("", "entered", "left"),
            moved,
        ),
    ]


def _describe_drift(drift: Sequence[float]) -> tuple[str, str]:
    if not drift:
        return "-", "-"
    return f"{np.mean(drift):+.3g}", f"{np.mean(np.abs(drift)):.3g}"


def _compare_recall(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Recall of both runs with standard errors, each on its own test queries."""
    one, other = before["results"], after["results"]
    title, header = "Recall of the runs", ("", "A", "B", "B - A in points")
    cuts = [k for k in one.get("k", ()) if k in other.get("k", ())]
    if not cuts:
        return Table(title, "At least one run has no recall at a cut-off of both.", header, [])
    rows = []
    for k in cuts:
        metric = f"recall@{k}"
        sides = [{**run["scenarios"], "macro": run["macro"]} for run in (one, other)]
        for name in (name for name in sides[0] if name in sides[1]):
            values = [side[name][metric] for side in sides]
            if None not in values:
                shown = [_with_error(side[name], metric) for side in sides]
                rows.append((f"{metric} {name}", *shown, f"{100 * (values[1] - values[0]):+.2f}"))
    note = "In %, with standard errors, each on the test queries of its own data."
    return Table(title, note, header, rows)


def _compare_queries(
    before: retriever.Retriever, after: retriever.Retriever, shared: Sequence[str]
) -> Table:
    """Paired intervals of recall on the test queries that both bundles hold."""
    queries = list(_match_queries(before, after, shared))
    cuts = [int(k) for k in before.bundle.manifest["results"].get("k", ())] or [_LENGTH]
    header = ("", *(f"recall@{k}, B - A in points" for k in cuts), "queries")
    title = "Recall on the same queries"
    if not queries:
        return Table(title, "No test query of one is a test query of the other.", header, [])
    scenario_Q = np.array([shared.index(query.scenario) for query in queries])
    sides = [_recall(served, queries, cuts) for served in (before, after)]
    found = [
        metrics.paired_bootstrap(sides[1][k] - sides[0][k], scenario_Q, len(shared)) for k in cuts
    ]
    counts = [*np.bincount(scenario_Q, minlength=len(shared)).tolist(), len(queries)]
    rows = [
        (name, *(_interval(entries[n]) for entries in found), f"{counts[n]:,}")
        for n, name in enumerate((*shared, "macro"))
        if counts[n]
    ]
    note = (
        "Queries of the same user in the same scenario with the same items to find; 95 % intervals "
        "of a paired bootstrap."
    )
    return Table(title, note, header, rows)


class _Query(NamedTuple):
    user: Any
    scenario: str
    items: frozenset[Any]


def _match_queries(
    before: retriever.Retriever, after: retriever.Retriever, shared: Sequence[str]
) -> Iterator[_Query]:
    """Test queries of both, scenario by scenario."""
    both = set(_read_queries(after))
    queries = [query for query in _read_queries(before) if query in both]
    return (query for name in shared for query in queries if query.scenario == name)


def _read_queries(served: retriever.Retriever) -> list[_Query]:
    """A bundle's test queries in raw values."""
    load, encoder = served.bundle.load, served.encoder
    user_Q, scenario_Q = load("test_queries").T
    users = encoder.users.decode(user_Q)
    items, ends = encoder.items.decode(load("test_relevant")), load("test_relevant_indptr").tolist()
    return [
        _Query(user, served.scenarios[s], frozenset(items[start:stop]))
        for user, s, start, stop in zip(users, scenario_Q, ends[:-1], ends[1:], strict=True)
    ]


def _recall(
    served: retriever.Retriever, queries: Sequence[_Query], cuts: Sequence[int]
) -> dict[int, np.ndarray]:
    """Recall of every query by cut-off."""
    wanted = served.want(max(cuts))
    relevant = [np.unique(served.encoder.items.encode(list(q.items), "items")) for q in queries]
    counts = [len(items) for items in relevant]
    rows = store_lib.Ragged(np.concatenate([[0], np.cumsum(counts)]), np.concatenate(relevant))
    scenario_Q = np.array([served.scenarios.index(q.scenario) for q in queries], np.int32)
    encoded = served.encoder.encode({requests.USER: [query.user for query in queries]})
    parts = []
    with runlog.bar(total=len(queries), desc="queries", unit="query") as bar:
        for start in range(0, len(queries), _BLOCK):
            row_Q = np.arange(start, min(start + _BLOCK, len(queries)))
            parts.append(served.search(encoded, wanted, row_Q, scenario_Q[row_Q]).item_QT)
            bar.update(len(row_Q))
    hit_QT = metrics.find_members(np.concatenate(parts), rows)
    return {k: metrics.hits_at_k(hit_QT, k) / np.array(counts) for k in cuts}


def _interval(interval: metrics.Interval) -> str:
    words = {"above": "B better", "below": "A better", "noise": "no difference shown"}
    return f"{interval.points} {words[interval.verdict]}"


def _with_error(row: dict[str, Any], metric: str) -> str:
    error = row.get(f"{metric}_se")
    return f"{100 * row[metric]:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _name(values: set[Any]) -> str:
    """How many values, and the first of them."""
    if not values:
        return "0"
    first = sorted(map(str, values))[:_MOST_NAMED]
    return f"{len(values):,}: {', '.join(first)}{', ...' if len(values) > len(first) else ''}"


def _name_counts(counts: collections.Counter[Any]) -> str:
    best = sorted(counts.items(), key=lambda entry: (-entry[1], str(entry[0])))[:_MOST_NAMED]
    return ", ".join(f"{item} ({count})" for item, count in best) or "none"
