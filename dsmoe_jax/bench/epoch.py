"""A measured epoch of a run of KuaiRand-Pure's size, and what the paper's fifty would take.

Owns the measurement: the whole product trains a teacher and a distilled student for one epoch each,
on generated rows in the archive's format, with the paper's values. The time of a stage is all of
it, from the first batch to the saved state: compilation and validation are counted in every epoch.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from typing import Any

from dsmoe_jax.bench import ours, peak
from dsmoe_jax.capacity import cases
from dsmoe_jax.config import load
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import api

CONFIG = "configs/kuairand.py:synthetic,paper_exact"
USERS, ITEMS, IMPRESSIONS = 27_285, 7_583, 1_436_609
POSITIVES, EPOCHS = 650_283, 50
# The paper's training time on an RTX 3090 Ti (table of efficiency).
PAPER_S = 7_174


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("--hidden_dim", type=int, default=64)
    parser.add_argument("--output_dim", type=int, default=64)
    parser.add_argument("--impressions", type=int, default=IMPRESSIONS, help="of the generated log")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains an epoch of each stage."""
    experiment = load.load_config(CONFIG)
    share = options.impressions / IMPRESSIONS
    data: Any = experiment.data
    data.num_users = max(200, round(USERS * share))
    data.num_items = max(200, round(ITEMS * share))
    data.num_impressions = options.impressions
    # The smallest scenario of a short log needs queries in both splits.
    data.validation_days = data.test_days = 5 if share < 1 else data.test_days
    sizes = {"hidden_dim": options.hidden_dim, "output_dim": options.output_dim}
    for name, value in sizes.items():
        setattr(experiment.model, name, value)
    experiment.train.max_epochs = experiment.teacher.max_epochs = 1
    seconds = {}
    # Console lines of the product are progress, not the result.
    with (
        tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name,
        contextlib.redirect_stdout(sys.stderr),
    ):
        store = store_lib.Store.open(api.prepare(experiment, name, progress=True))
        for stage in ("teacher", "student"):
            start_s = time.perf_counter()
            api.train(experiment, name, mode=stage, progress=True)
            seconds[stage] = time.perf_counter() - start_s
    bench = ours.Bench(ours.Wanted("kuairand", distill=True, overrides=sizes))
    return {
        **sizes,
        "examples": len(store.train_NC),
        "epoch_s": seconds,
        "matmul_flop": ours.count_matmul_flops(bench),
        "peak_flop_per_s": peak.matmul_flops(),
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    epochs = EPOCHS * POSITIVES / found["examples"]
    steps = EPOCHS * POSITIVES // cases.POSITIVES
    bound_s = steps * found["matmul_flop"] / found["peak_flop_per_s"]
    lines = [
        f"epoch, hidden_dim {found['hidden_dim']}, output_dim {found['output_dim']}: "
        f"{found['examples']:,} generated examples, with validation and compilation"
    ]
    for stage, epoch_s in found["epoch_s"].items():
        lines.append(
            f"  {stage}: {epoch_s:.1f} s; {EPOCHS} epochs of {POSITIVES:,} examples would take "
            f"{epochs * epoch_s:,.0f} s"
        )
    rate = f"{found['peak_flop_per_s'] / 1e9:,.0f} GFLOP/s"
    return [
        *lines,
        f"  the matrix products of the student's {steps:,} steps alone take {bound_s:,.0f} s at "
        f"{rate}; the paper's run took {PAPER_S:,} s on a GPU",
    ]
