"""Tables of the systems that had the inputs `plus`: their recall, and DSMOE's lead over each.

Owns which of the planned systems are shown, those that were run, and the groups of users.

Letters: Q queries.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from dsmoe_jax.compare import estimates, plan, queries
from dsmoe_jax.compare.report import build, findings, finished, formats, recall_table
from dsmoe_jax.evaluation import metrics

CONFIG = "configs/kuairand.py:sample,plus"
_ALL = "all queries"
_POPULARITY = "popularity in scenario"
# DSMOE beside FISM without its towers.
_PLAIN = "fism"

# Users with fewer positives than these have a row of their own.
_FEW = 3
# Days at the end of the log that a second choice of test days leaves out.
_EARLIER = 2


def load(source: build.Source, dropped_days: int = 0) -> list[finished.System]:
    """The systems that were run, on the last test days or on earlier ones."""
    systems = [system.on_days(dropped_days) for system in source.systems("table2")]
    return [system for system in systems if system.entries]


def make_recall(
    systems: Sequence[finished.System], name: str = "plus", title: str = "Recall"
) -> formats.Table:
    """Recall per scenario, without the paper's rows."""
    return recall_table.make(name, title, systems, with_paper=False)


def show_users(source: build.Source) -> formats.Table:
    """`make_users` of the systems on the last test days.

    Raises:
      ValueError: When nothing is known of the users, as before the first job of these records.
    """
    known = queries.load(source.records, 0)
    if known is None:
        raise ValueError(f"{source.records}: expected queries-drop0.npz, which a job leaves")
    return make_users(load(source), known)


def show_earlier(source: build.Source) -> list[formats.Table]:
    """Recall and leads two days earlier."""
    systems = load(source, _EARLIER)
    return [
        make_recall(systems, "plus_earlier", f"Recall, {_EARLIER} days earlier"),
        make_leads(systems, "plus_earlier_leads", f"Leads, {_EARLIER} days earlier"),
    ]


def show_shown(source: build.Source) -> list[formats.Table]:
    """Recall and leads where everything that was shown is removed from the lists.

    The records of that rule are in a folder beside the others.
    """
    beside = source.records.with_name(f"{source.records.name}_shown")
    systems = load(dataclasses.replace(source, records=beside))
    return [
        make_recall(systems, "plus_shown", "Recall, all shown items removed"),
        make_leads(systems, "plus_shown_leads", "Leads, all shown items removed"),
    ]


def show_parts(source: build.Source) -> formats.Table:
    """What each part of the recipe earns: DSMOE's lead over itself without the part, or taught.

    Seeds that both have are compared: what a seed draws, both draw.
    """
    ablated = [system.on_days(0) for system in source.systems("table4")]
    others = [system for system in load(source) if system.name in (_PLAIN, plan.TAUGHT)]
    systems = [system for system in (*ablated, *others) if system.entries]
    return make_leads(systems, "plus_parts", "What a part earns", same_seeds=True)


def make_users(systems: Sequence[finished.System], known: queries.Known) -> formats.Table:
    """Recall of users by what was known of them, in the mean of scenarios and over all queries."""
    own = finished.own(systems)
    k = recall_table.cutoffs_of(own)[0]
    scenarios = recall_table.scenarios_of(own)
    groups = {
        "all users": np.ones(len(known.events_Q), bool),
        "no training positive": known.trained_Q == 0,
        f"under {_FEW} positives": known.events_Q < _FEW,
    }
    heads = [""]
    for label, chosen_Q in groups.items():
        heads += [f"{label}: macro @{k}", f"all {chosen_Q.sum():,} queries @{k}"]
    rows, records = [], []
    for system in systems:
        cells = []
        for label, chosen_Q in groups.items():
            pooled = _restrict(estimates.pool(system, k), chosen_Q)
            macro = estimates.estimate(pooled, scenarios)[estimates.MACRO].mean
            whole = float(pooled.recall_Q.mean())
            cells += [recall_table.percent(macro), recall_table.percent(whole)]
            records.append(
                {"row": system.name, "users": label, "k": k, "macro": macro, "all queries": whole}
            )
        rows.append((system.label, *cells))
    notes = ["Recall in %, mean over seeds; users by their positives before the test days."]
    popular = next((s for s in systems if s.name == _POPULARITY), None)
    if popular is not None:
        parts = [
            f"{label} {_whole(own, popular, k, chosen_Q).points}"
            for label, chosen_Q in groups.items()
        ]
        notes.append(f"{own.label} minus {popular.label}, over all queries: {'; '.join(parts)}.")
    return formats.Table(
        "plus_users",
        "Users by what is known of them",
        tuple(heads),
        formats.cells(rows),
        tuple(notes),
        tuple(records),
    )


def _restrict(pooled: estimates.Pooled, chosen_Q: Bool[np.ndarray, "Q"]) -> estimates.Pooled:
    """The queries of one choice of test days that are chosen by their rows."""
    kept_Q = chosen_Q[pooled.key_Q & ((1 << 40) - 1)]
    return estimates.Pooled(
        pooled.key_Q[kept_Q],
        pooled.scenario_Q[kept_Q],
        pooled.recall_Q[kept_Q],
        pooled.recall_NQ[:, kept_Q],
    )


def _whole(
    own: finished.System, other: finished.System, k: int, chosen_Q: Bool[np.ndarray, "Q"]
) -> metrics.Interval:
    """`own` minus `other` over the chosen queries, which count the same."""
    pair = [_restrict(estimates.pool(system, k), chosen_Q) for system in (own, other)]
    first, second = (p._replace(scenario_Q=np.zeros_like(p.scenario_Q)) for p in pair)
    return estimates.compare(first, second, [_ALL])[_ALL]


def make_leads(
    systems: Sequence[finished.System],
    name: str = "plus_leads",
    title: str = "Leads",
    *,
    same_seeds: bool = False,
) -> formats.Table:
    """DSMOE minus every other system but the random one, in macro recall and over all queries.

    With `same_seeds` of the seeds that both have, and of all seeds otherwise.
    """
    own = finished.own(systems)
    k = recall_table.cutoffs_of(own)[0]
    scenarios = recall_table.scenarios_of(own)
    parts = (estimates.MACRO, _ALL, *scenarios)
    heads: tuple[str, ...] = (f"{own.label} minus", *(f"{part} @{k}" for part in parts))
    rows, records = [], []
    for system in systems:
        if system.name in (own.name, "random"):
            continue
        shared = sorted({e.seed for e in own.entries} & {e.seed for e in system.entries})
        first, second = own, system
        if same_seeds:
            first, second = _of_seeds(own, shared), _of_seeds(system, shared)
        found = compare(first, second, k)
        seeds = (", ".join(map(str, shared)),) if same_seeds else ()
        rows.append((system.label, *(f"{found[part].points}" for part in parts), *seeds))
        records += [
            {"row": system.name, "part": part, "k": k, **found[part]._asdict()} for part in parts
        ]
    heads += ("seeds",) if same_seeds else ()
    note = "Points of recall, 95 % intervals of a paired bootstrap; mean over seeds first."
    return formats.Table(name, title, heads, formats.cells(rows), (note,), tuple(records))


def _of_seeds(system: finished.System, seeds: Sequence[int]) -> finished.System:
    kept = tuple(entry for entry in system.entries if entry.seed in seeds)
    return dataclasses.replace(system, entries=kept)


def compare(own: finished.System, other: finished.System, k: int) -> dict[str, metrics.Interval]:
    """`own` minus `other` by scenario, macro, and over all queries, which count the same."""
    scenarios = recall_table.scenarios_of(own)
    first, second = estimates.pool(own, k), estimates.pool(other, k)
    found = estimates.compare(first, second, scenarios)
    one, two = (p._replace(scenario_Q=np.zeros_like(p.scenario_Q)) for p in (first, second))
    return {**found, _ALL: estimates.compare(one, two, [_ALL])[_ALL]}


def say(systems: Sequence[finished.System]) -> str:
    """One sentence: DSMOE's macro recall and that of the best baseline with the same inputs."""
    own = finished.own(systems)
    k = recall_table.cutoffs_of(own)[0]
    scenarios = recall_table.scenarios_of(own)
    recall = {
        system.name: estimates.estimate(estimates.pool(system, k), scenarios)[estimates.MACRO].mean
        for system in systems
    }
    best = max((s for s in systems if s.kind == "scored"), key=lambda s: recall[s.name])
    lead = compare(own, best, k)
    return (
        f"{100 * recall[own.name]:.1f} % in the mean of scenarios, without a teacher "
        f"({len(own.entries)} seeds); {best.label}, the best baseline with the same inputs, "
        f"{100 * recall[best.name]:.1f} %: DSMOE minus it {lead[estimates.MACRO].points} points, "
        f"over all queries {lead[_ALL].points}."
    )


def find(systems: Sequence[finished.System]) -> list[str]:
    """What stands above DSMOE beside FISM, or within noise of it."""
    return findings.beside_own(recall_table.compare(systems))
