"""Input pipeline throughput, and the share of a training run that waits for it.

Owns both measurements. The first pulls the first epoch's batches, in their random order and with
both histories of 50 items, out of the prefetching iterator and does nothing with them; the second
trains a student for one epoch and reads `perf/data_wait_share`.
"""

import argparse
import contextlib
import itertools
import pathlib
import sys
import tempfile
import time
from typing import Any

from dsmoe_jax import features, runlog
from dsmoe_jax.bench import pairs
from dsmoe_jax.capacity import cases
from dsmoe_jax.config import load, schema
from dsmoe_jax.data import pipeline
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import api

BATCH_SIZES = (cases.POSITIVES, 8192)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument(
        "--config", default="kuairand:sample", help="NAME or FILE[:variant], %(default)s if none"
    )
    parser.add_argument("--rounds", type=int, default=5, help="first epochs of each batch size")
    parser.add_argument(
        "--without_training", action="store_true", help="the pipeline alone, no training epoch"
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the pipeline of a configuration; batch sizes take turns."""
    experiment = load.load_config(options.config)
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name:
        workdir = pathlib.Path(name)
        # Console lines of the product are progress, not the result.
        with contextlib.redirect_stdout(sys.stderr):
            store = store_lib.Store.open(api.prepare(experiment, workdir, progress=True))
            rates = pull_epochs(store, experiment, options.rounds)
            waits = None if options.without_training else train_epoch(experiment, workdir)
    return {
        "config": options.config,
        "examples": len(store.train_NC),
        "examples_per_s": {size: pairs.spread(rate) for size, rate in rates.items()},
        "training": waits,
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    lines = [f"pipeline, {found['config']}: {found['examples']:,} training examples"]
    for size, rate in found["examples_per_s"].items():
        lines.append(
            f"  batches of {size:>5}: {rate['median'] / 1e6:.2f} M examples/s "
            f"[{rate['least'] / 1e6:.2f}, {rate['greatest'] / 1e6:.2f}]"
        )
    if found["training"]:
        training = found["training"]
        lines.append(
            f"  a training epoch: {training['examples_per_s']:,.0f} examples/s, at most "
            f"{100 * training['data_wait_share']:.2f} % of it waiting for data"
        )
    return lines


def pull_epochs(
    store: store_lib.Store, experiment: schema.Experiment, rounds: int
) -> dict[int, list[float]]:
    """Examples per second of first epochs, by batch size; one value a round."""
    spec = features.select(
        store.spec,
        exclude=tuple(experiment.features.exclude),
        history_length=cases.HISTORY,
        scenario_history_length=cases.HISTORY,
    )
    sizes = sorted({experiment.train.batch_size, *BATCH_SIZES})
    sizes = [size for size in sizes if size <= len(store.train_NC)]
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes * rounds:
        start_s = time.perf_counter()
        # A new source has to draw its order, as every epoch has.
        source = pipeline.BatchSource(
            store, spec, seed=experiment.seed, batch_size=size, max_epochs=1
        )
        count = sum(len(batch.item_B) for batch in pipeline.make_train_iterator(source, start=0))
        rates[size].append(count / (time.perf_counter() - start_s))
    return rates


def train_epoch(experiment: schema.Experiment, workdir: pathlib.Path) -> dict[str, float]:
    """Trains the configuration's student, undistilled, for one epoch, and reads its metrics."""
    # A shorter step leaves less time to prepare the next batch: undistilled is the harder case.
    experiment.loss.distill_weight = 0.0
    experiment.train.max_epochs = 1
    # Validation is not measured.
    experiment.eval.validation_queries = 50
    api.train(experiment, workdir, mode="student", progress=True)
    points = runlog.read_points(workdir / runlog.METRICS_FILE)
    waits = [point for point in points if "perf/data_wait_share" in point]
    return summarise(waits, experiment.train.batch_size)


def summarise(points: list[dict[str, Any]], batch_size: int) -> dict[str, float]:
    """Examples per second and share of waiting of logged points; the first one compiles."""
    examples = waited_s = elapsed_s = 0.0
    for before, point in itertools.pairwise(points):
        count = (point["step"] - before["step"]) * batch_size
        seconds = count / point["perf/examples_per_s"]
        examples, elapsed_s = examples + count, elapsed_s + seconds
        waited_s += point["perf/data_wait_share"] * seconds
    if not elapsed_s:
        raise ValueError(
            f"expected at least two logged points, got {len(points)}; lower train.steps_per_report"
        )
    return {"examples_per_s": examples / elapsed_s, "data_wait_share": waited_s / elapsed_s}
