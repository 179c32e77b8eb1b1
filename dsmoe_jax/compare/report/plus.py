"""Tables of the systems that had the inputs `plus`: their recall, and DSMOE's lead over each.

Owns which of the planned systems are shown: those that were run.
"""

from collections.abc import Sequence

import numpy as np

from dsmoe_jax.compare import estimates
from dsmoe_jax.compare.report import build, findings, finished, formats, recall_table
from dsmoe_jax.evaluation import metrics

CONFIG = "configs/kuairand.py:sample,plus"
_ALL = "all queries"


def load(source: build.Source) -> list[finished.System]:
    """The systems that were run, on the last test days."""
    return [system for system in build.on_first_days(source, "table2") if system.entries]


def make_recall(systems: Sequence[finished.System]) -> formats.Table:
    """Recall per scenario, without the paper's rows."""
    return recall_table.make("plus", "Recall", systems, with_paper=False)


def make_leads(systems: Sequence[finished.System]) -> formats.Table:
    """DSMOE minus every other system but the random one, in macro recall and over all queries."""
    own = finished.own(systems)
    k = recall_table.cutoffs_of(own)[0]
    scenarios = recall_table.scenarios_of(own)
    parts = (estimates.MACRO, _ALL, *scenarios)
    heads = ("DSMOE beside FISM minus", *(f"{part} @{k}" for part in parts))
    rows, records = [], []
    for system in systems:
        if system.name in (own.name, "random"):
            continue
        found = compare(own, system, k)
        rows.append((system.label, *(f"{found[part].points}" for part in parts)))
        records += [
            {"row": system.name, "part": part, "k": k, **found[part]._asdict()} for part in parts
        ]
    note = "Points of recall, 95 % intervals of a paired bootstrap; mean over seeds first."
    return formats.Table("plus_leads", "Leads", heads, formats.cells(rows), (note,), tuple(records))


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
