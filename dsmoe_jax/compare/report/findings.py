"""Findings of a comparison in sentences: what a reader of its tables may miss.

Owns which questions are asked of them. Every answer is computed, whichever way it falls.
"""

from collections.abc import Sequence

from dsmoe_jax.compare import estimates
from dsmoe_jax.compare.report import finished, recall_table
from dsmoe_jax.evaluation import metrics

# What the paper prints to be worse than DSMOE, most of all in small scenarios.
CLAIMED = ("no_sap", "no_distill", "no_dsbn")
_POPULARITY = "popularity in scenario"
_PRIOR = " + scenario prior"


def knows_scenario(system: finished.System) -> bool:
    """Whether a baseline counts an item's clicks in the scenario."""
    return system.name.endswith((_POPULARITY, _PRIOR))


def beside_own(compared: Sequence[recall_table.Compared]) -> list[str]:
    """Which systems are told apart from DSMOE as better, and which in macro recall not at all."""
    k = min(compared[0].estimates)
    macro: dict[str, list[str]] = {"above": [], "noise": [], "below": []}
    single = []
    for entry in compared:
        if not entry.intervals:
            continue
        whole, label = entry.intervals[k][estimates.MACRO], entry.system.label
        macro[whole.verdict].append(f"{label} ({whole.points})")
        single += [
            f"{label} {name} ({interval.points})"
            for name, interval in entry.intervals[k].items()
            if interval.verdict == "above" and whole.verdict != "above"
        ]
    recall = f"recall@{k}{_pooled(compared) or _on_days(compared)}"
    found = [f"No other method or baseline is above DSMOE beyond noise in macro {recall}."]
    if macro["above"]:
        better = "; ".join(macro["above"])
        found = [f"Above DSMOE beyond noise in macro {recall}, in points: {better}."]
    if macro["noise"]:
        level = "; ".join(macro["noise"])
        found.append(f"Within noise of DSMOE in macro {recall}, in points: {level}.")
    if single:
        found.append(f"Above DSMOE in one scenario's {recall}, in points: {'; '.join(single)}.")
    return found


def below_popularity(compared: Sequence[recall_table.Compared]) -> list[str]:
    """A sentence for every scenario in which some method does not beat its popularity.

    One more says which of these methods cannot; one alone where none is below; none without the
    row of popularity.
    """
    by_name = {entry.system.name: entry.system for entry in compared}
    popular = by_name.get(_POPULARITY)
    if popular is None:
        return []
    k = min(compared[0].estimates)
    leads = {
        entry.system.label: _minus(entry.system, popular, k)
        for entry in compared
        if entry.system.kind == "run"
    }
    found: list[str] = []
    not_above: set[str] = set()
    for name, row in popular.entries[0].summary["scenarios"].items():
        worse = {label: lead[name] for label, lead in leads.items() if lead[name].difference <= 0}
        not_above |= worse.keys()
        if worse:
            each = ", ".join(f"{label} {lead.points}" for label, lead in worse.items())
            found.append(
                f"Not above {_POPULARITY} in {name}, which has "
                f"{recall_table.percent(row['share'])} % of the training positives; minus it, "
                f"recall@{k} in points{_pooled(compared)}: {each}."
            )
    blind = [
        entry.system.label
        for entry in compared
        if entry.system.label in not_above
        and entry.system.entries[0].record["costs"]["indexes"] == 1
    ]
    if blind and len(popular.entries[0].summary["scenarios"]) > 1:
        found.append(
            f"Of these, {', '.join(blind)}: one item vector for all scenarios, which cannot hold "
            "what is popular in one of them alone."
        )
    return found or [f"Every method is above {_POPULARITY}, in every scenario."]


def prior_gain(compared: Sequence[recall_table.Compared]) -> list[str]:
    """A sentence on what the scenario prior adds to the systems that have a row without it too.

    In macro recall and in the smallest scenario, where rows teach a model the least.
    """
    by_name = {entry.system.name: entry.system for entry in compared}
    k = min(compared[0].estimates)
    found = []
    for name, system in by_name.items():
        with_prior = by_name.get(name + _PRIOR)
        if with_prior is None:
            continue
        gains = _minus(with_prior, system, k)
        rows = system.entries[0].summary["scenarios"]
        smallest = min(rows, key=lambda scenario: rows[scenario]["share"])
        each = (f"{part} {gains[part].points}" for part in (estimates.MACRO, smallest))
        found.append(f"{system.label} {', '.join(each)}")
    if not found:
        return []
    return [
        "What the scenario prior adds, an item's share of the scenario's clicks, which no method "
        f"is given; recall@{k} in points{_pooled(compared)}: {'; '.join(found)}."
    ]


def ablations(compared: Sequence[recall_table.Compared]) -> list[str]:
    """A sentence for every ablation that the paper prints to be worse than DSMOE."""
    own = finished.own([entry.system for entry in compared])
    found = []
    for entry in compared:
        if entry.system.name not in CLAIMED:
            continue
        k = min(entry.intervals)
        intervals = entry.intervals[k]
        macro = intervals[estimates.MACRO]
        answer = {"below": "worse, as in the paper", "above": "better, unlike in the paper"}.get(
            macro.verdict, "not told apart from DSMOE"
        )
        by_scenario = ", ".join(
            f"{name} {interval.points}"
            for name, interval in intervals.items()
            if name != estimates.MACRO
        )
        found.append(
            f"{entry.system.label[0].upper()}{entry.system.label[1:]} "
            f"({_parameters(entry.system, own)}): {answer}; minus DSMOE, recall@{k} in points"
            f"{_pooled(compared)}: macro {macro.points}; {by_scenario}."
        )
    return found


def _pooled(compared: Sequence[recall_table.Compared]) -> str:
    """What is said of numbers that are of more than one choice of test days."""
    own = finished.own([entry.system for entry in compared])
    return ", all test days pooled" if len(own.days) > 1 else ""


def _on_days(compared: Sequence[recall_table.Compared]) -> str:
    """The test days of numbers that are of one choice of them."""
    own = finished.own([entry.system for entry in compared])
    days = own.entries[0].record["split"]["test"]["days"]
    return f" on {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def _minus(system: finished.System, other: finished.System, k: int) -> dict[str, metrics.Interval]:
    """The difference of two systems on the same queries."""
    scenarios = recall_table.scenarios_of(system)
    return estimates.compare(estimates.pool(system, k), estimates.pool(other, k), scenarios)


def _parameters(system: finished.System, own: finished.System) -> str:
    mine, bar = (found.entries[0].record["params"]["dense"] for found in (system, own))
    if mine == bar:
        return "as many dense parameters"
    return f"{100 * abs(mine / bar - 1):.1f} % {'more' if mine > bar else 'fewer'} dense parameters"
