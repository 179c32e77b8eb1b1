"""Cost table, the paper's Table 3: what a method takes to train, to keep and to serve.

Owns its layout. Parameters are those that are trained and served: no moments, no running
statistics, no teacher. A forward pass is of 4,096 pairs, each with its own scenario; how its
multiplications are counted is in `costs.py`.
"""

import statistics
from collections.abc import Mapping, Sequence

from dsmoe_jax.compare import costs, records
from dsmoe_jax.compare.report import finished, formats, paper

# The paper's numbers by the head of their column.
_PRINTED: dict[str, Mapping[str, Mapping[str, float]]] = {
    "all, M": paper.PARAMETERS_M,
    "GMACs of a forward pass": paper.GIGA_MACS,
    "training, s": paper.TRAIN_S,
}


def make(systems: Sequence[finished.System]) -> formats.Table:
    """The table; ours, then the paper's printed numbers.

    Raises:
      ValueError: When DSMOE has no finished job.
    """
    own = finished.own(systems)
    heads, dataset = tuple(_measure(own)), own.entries[0].record["dataset"]
    rows = []
    for system in (system for system in systems if system.kind == "run"):
        measured = _measure(system) if system.entries else dict.fromkeys(heads, "not run")
        rows.append((system.label, *measured.values()))
    for system in systems:
        printed = {
            head: f"{known[dataset][system.name]:,}"
            for head, known in _PRINTED.items()
            if system.name in known.get(dataset, {})
        }
        if printed:
            rows.append((paper.label(system.label), *(printed.get(head, "") for head in heads)))
    shown = [record for system in systems for record in _records(system)]
    note = (
        f"A forward pass of {costs.PAIRS:,} pairs of a user and an item, each in its own scenario, "
        "with the branch of that scenario alone; a MAC is two FLOPs. The paper's parameters are "
        "read as millions and its GFLOPs as GMACs; its widths are unknown, so that ratios between "
        "methods compare, not digits. Seconds: means over seeds, on "
        f"{records.join(shown, 'device')}, {records.join(shown, 'cores')} core(s) a run; training "
        "includes validation and compilation; what a teacher takes is counted once "
        "however many it teaches."
    )
    return formats.Table("table3", "Table 3: cost", ("", *heads), formats.cells(rows), (note,))


def _records(system: finished.System) -> list[records.Record]:
    """The records whose numbers are shown: those of the last test days, where there are any."""
    of_last_days = [entry.record for entry in system.entries if entry.dropped_days == 0]
    return of_last_days or [entry.record for entry in system.entries]


def _measure(system: finished.System) -> dict[str, str]:
    """The numbers of a system by the heads of their columns."""
    shown = _records(system)
    params, counted = shown[0]["params"], shown[0]["costs"]
    total = params["dense"] + params["embedding"]
    forward = counted["user"] + counted["item"] + counted["score"]

    def seconds(name: str) -> float:
        return statistics.fmean(record["time_s"].get(name, 0.0) for record in shown)

    epoch_s = statistics.fmean(
        record["split"]["train"]["examples"] / record["examples_per_s"] for record in shown
    )
    before_s = seconds("pretraining")
    return {
        "dense parameters, M": f"{params['dense'] / 1e6:.3f}",
        "embedding parameters, M": f"{params['embedding'] / 1e6:.3f}",
        "all, M": f"{total / 1e6:.3f}",
        "MiB in float32": f"{4 * total / 2**20:.2f}",
        "GMACs of a forward pass": f"{forward / 1e9:.3f}",
        "GFLOPs": f"{2 * forward / 1e9:.3f}",
        "user tower, MMACs a query": f"{counted['query'] / 1e6:.3f}",
        "item vectors of all indexes, GMACs": f"{counted['corpus'] / 1e9:.3f}",
        "indexes": f"{counted['indexes']}",
        "training, s": f"{seconds('student') + before_s:,.0f}",
        "of it before the main stage, s": f"{before_s:,.0f}" if before_s else "",
        "an epoch's steps, s": f"{epoch_s:.1f}",
        "teacher, s": f"{seconds('teacher'):,.0f}" if seconds("teacher") else "",
    }
