"""What the numbers of a comparison say that a reader of its tables may miss, in sentences.

Owns which questions are asked of them. Every answer is computed, whichever way it falls.
"""

from collections.abc import Sequence

from dsmoe_jax.suite import estimates, finished, recall_table

# What the paper prints to be worse than DSMOE, most of all in small scenarios.
CLAIMED = ("no_sap", "no_distill", "no_dsbn")
_POPULARITY = "popularity in scenario"
_PRIOR = " + scenario prior"


def above_own(judged: Sequence[recall_table.Judged]) -> list[str]:
    """One sentence: which systems are told apart from DSMOE as better, in macro recall."""
    k = min(judged[0].estimates)
    better = [
        f"{entry.system.label} ({_points(entry.intervals[k][estimates.MACRO])})"
        for entry in judged
        if entry.intervals and entry.intervals[k][estimates.MACRO].verdict == "above"
    ]
    if not better:
        return [f"No other row is above DSMOE beyond noise in macro recall@{k}."]
    return [f"Above DSMOE beyond noise in macro recall@{k}, in points: {'; '.join(better)}."]


def below_popularity(judged: Sequence[recall_table.Judged]) -> list[str]:
    """A sentence for every method that does not beat scenario popularity in every scenario.

    One sentence for all of them where none is below; none without the row of popularity.
    """
    by_name = {entry.system.name: entry for entry in judged}
    popular = by_name.get(_POPULARITY)
    if popular is None:
        return []
    k = min(popular.estimates)
    scenarios = recall_table.scenarios_of(popular.system)
    bar = estimates.pool(popular.system, k)
    found = []
    for entry in judged:
        if entry.system.kind != "run":
            continue
        leads = estimates.compare(estimates.pool(entry.system, k), bar, scenarios)
        summary = entry.system.entries[0].summary["scenarios"]
        worse = [
            f"{name} ({recall_table.percent(summary[name]['share'])} % of the training positives) "
            f"{_points(leads[name])}"
            for name in scenarios
            if leads[name].difference <= 0
        ]
        if not worse:
            continue
        why = ""
        if entry.system.entries[0].record["costs"]["indexes"] == 1 and len(scenarios) > 1:
            why = (
                "; its item vectors are the same in all scenarios, so that it cannot know what is "
                "popular in one of them alone"
            )
        found.append(
            f"{entry.system.label} is not above {_POPULARITY}; minus it, recall@{k} in points: "
            f"{', '.join(worse)}{why}."
        )
    return found or [f"Every method is above {_POPULARITY}, in every scenario."]


def prior_gain(judged: Sequence[recall_table.Judged]) -> list[str]:
    """A sentence on what the scenario prior adds to the systems that have a row without it too."""
    by_name = {entry.system.name: entry.system for entry in judged}
    k = min(judged[0].estimates)
    found = []
    for name, system in by_name.items():
        with_prior = by_name.get(name + _PRIOR)
        if with_prior is None:
            continue
        gains = estimates.compare(
            estimates.pool(with_prior, k),
            estimates.pool(system, k),
            recall_table.scenarios_of(system),
        )
        by_scenario = ", ".join(f"{scenario} {_points(gain)}" for scenario, gain in gains.items())
        found.append(f"{system.label} {by_scenario}")
    if not found:
        return []
    return [
        "What a prior of the item in the scenario adds, which no two-tower method is given, "
        f"recall@{k} in points: {'; '.join(found)}."
    ]


def ablations(judged: Sequence[recall_table.Judged]) -> list[str]:
    """A sentence for every ablation that the paper prints to be worse than DSMOE."""
    own = finished.own([entry.system for entry in judged])
    found = []
    for entry in judged:
        if entry.system.name not in CLAIMED:
            continue
        k = min(entry.intervals)
        intervals = entry.intervals[k]
        macro = intervals[estimates.MACRO]
        answer = {"below": "worse, as printed", "above": "better, against what is printed"}.get(
            macro.verdict, "not told apart"
        )
        by_scenario = ", ".join(
            f"{name} {_points(interval)}"
            for name, interval in intervals.items()
            if name != estimates.MACRO
        )
        found.append(
            f"{entry.system.label[0].upper()}{entry.system.label[1:]} "
            f"({_parameters(entry.system, own)}): {answer}; minus DSMOE, recall@{k} in points: "
            f"macro {_points(macro)}; {by_scenario}."
        )
    return found


def _points(interval: estimates.Interval) -> str:
    difference, low, high = (100 * value for value in interval)
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _parameters(system: finished.System, own: finished.System) -> str:
    mine, bar = (found.entries[0].record["params"]["dense"] for found in (system, own))
    if mine == bar:
        return "as many dense parameters"
    return f"{100 * abs(mine / bar - 1):.1f} % {'more' if mine > bar else 'fewer'} dense parameters"
