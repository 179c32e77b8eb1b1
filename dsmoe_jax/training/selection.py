"""Selection of a stage's epoch: what its score is of, and how scores are told."""

from collections.abc import Mapping
from typing import Any

from dsmoe_jax.training import checkpoint


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of a score's meaning changed, e.g. `score 'recall@5' -> 'recall@1'`; empty for nothing.

    Scores from before their meaning was kept are taken as they are.
    """
    return ", ".join(
        f"{name} {before.get(name)!r} -> {value!r}"
        for name, value in now.items()
        if before and before.get(name) != value
    )


def metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The points of an evaluation as logs name them, such as `eval/macro/recall@50`."""
    rows = {"macro": summary["macro"], **summary["scenarios"]}
    return {f"eval/{row}/{name}": value for row, of in rows.items() for name, value in of.items()}


def describe_epoch(
    progress: checkpoint.Progress, score_name: str, summary: Mapping[str, Any], mark: str
) -> str:
    """The console's line of an evaluated epoch; the mark says that its state is kept, and why."""
    recalls = "  ".join(
        f"{scenario} {100 * row[score_name]:.1f}" for scenario, row in summary["scenarios"].items()
    )
    return (
        f"{progress.stage} epoch {progress.epochs_evaluated:>3}  validation {score_name} % "
        f"macro {100 * summary['macro'][score_name]:.2f}  {recalls}{f'  {mark}' if mark else ''}"
    )
