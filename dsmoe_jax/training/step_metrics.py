"""Metrics of training steps: their means over a report, and how they are told.

Letters: S scenarios.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dsmoe_jax.training import train_step


def fetch(pending: Sequence[tuple[int, int, train_step.Metrics]]) -> list[dict[str, Any]]:
    """The metrics of every step, on the host, from groups (step before, steps, stacked metrics)."""
    return [
        {name: stacked[n] for name, stacked in metrics.items()}
        for _, count, metrics in jax.device_get(list(pending))
        for n in range(count)
    ]


def average(fetched: Sequence[Mapping[str, Any]], scenarios: Sequence[str]) -> dict[str, float]:
    """Mean losses by log key: `train/loss`, `train/<part>` and `train/<scenario>/<part>`."""
    rows_S = functools.reduce(operator.add, [metrics["rows"] for metrics in fetched])
    values = {"train/loss": float(np.mean([metrics["loss"] for metrics in fetched]))}
    for part in sorted(set(fetched[0]) - {"rows", "loss"}):
        sum_S = functools.reduce(operator.add, [metrics[part] for metrics in fetched])
        values[f"train/{part}"] = float(sum_S.sum() / rows_S.sum())
        for name, total, rows in zip(scenarios, sum_S, rows_S, strict=True):
            if rows:
                values[f"train/{name}/{part}"] = float(total / rows)
    return values


def describe(values: dict[str, float]) -> str:
    """The mean losses over all scenarios, beside a progress bar."""
    return " ".join(
        f"{name.removeprefix('train/')} {value:.4f}"
        for name, value in values.items()
        if name.count("/") == 1 and name.startswith("train/")
    )
