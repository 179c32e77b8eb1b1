"""Results schema: `results.json`, which tables and figures are made from.

Owns its schema, and that of the arrays beside it. Recalls are fractions; a metric of a scenario
without queries is null. What a run writes, beside `describe`:

    variant, seed, config_hash     the configuration
    scenarios, macro, cold         the student on all test queries, see `Evaluation.summarise`
    validation                     the same on all validation queries
    teacher                        the teacher's summary on sampled queries, or null without one
    references                     summaries of the baselines by name
    continued                      of a run that goes on from another: its folder, the digest of its
                                   checkpoint, its data's hash, and summaries of that model and of
                                   one trained anew on the same queries, or null without one
    params                         numbers of dense and embedding parameters of the student
    time_s                         seconds of prepare, teacher, pretraining, student, evaluate
    examples_per_s                 positives per second in the student's training
"""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import dsmoe_jax
from dsmoe_jax import disk, runlog
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import protocol
from dsmoe_jax.run import workdir as workdir_lib

FILE = "results.json"
ARRAYS_FILE = "arrays.npz"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe(store: store_lib.Store, test: protocol.Evaluation, **run: Any) -> dict[str, Any]:
    """What was measured on what: the data, the run, software, devices and the test queries."""
    return {
        "dataset": store.manifest["dataset"],
        **run,
        "data_hash": store.data_hash,
        "versions": versions(),
        "device": describe_devices(),
        "date": datetime.date.today().isoformat(),
        "split": store.manifest["split"],
        "candidates": test.num_candidates,
        "seen_items_removed": test.remove_seen != "none",
        "remove_seen": test.remove_seen,
        **({"repeats": True} if store.repeats else {}),
        "k": list(test.hits),
    }


def save(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes the file beside its place, then renames it there."""
    runlog.replace_text(path, json.dumps(plain(results), indent=1, allow_nan=False) + "\n")


def read(path: pathlib.Path) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
      ValueError: When the file is damaged.
    """
    record = workdir_lib.read_record(path, "run --mode evaluate again, which writes it anew")
    if missing := [name for name in ("scenarios", "macro", "k", "data_hash") if name not in record]:
        raise ValueError(
            f"{path}: the file is damaged: expected the key {missing[0]!r}, got none; run --mode "
            "evaluate again, which writes it anew"
        )
    return record


def query_arrays(test: protocol.Evaluation) -> dict[str, np.ndarray]:
    """A system on test queries as small integers.

    `query`, `scenario`, `relevant` and, for each cut-off k, `hits@k`: the relevant items among the
    top k. Recall per query is hits / relevant.
    """
    return {
        "query": test.query_Q.astype(np.int32),
        "scenario": test.scenario_Q.astype(np.int16),
        "relevant": test.relevant_Q.astype(np.int32),
        **{f"hits@{k}": hits_Q.astype(np.int16) for k, hits_Q in test.hits.items()},
    }


def save_arrays(
    path: pathlib.Path, test: protocol.Evaluation, views: dict[str, dict[str, np.ndarray]]
) -> None:
    """Writes what only comparisons of several runs need, beside its place, then renames it there.

    These are `query_arrays` and the views' tables, as `<kind>/<name>`.
    """
    tables = {f"{kind}/{name}": v for kind, entry in views.items() for name, v in entry.items()}
    arrays: dict[str, Any] = {**query_arrays(test), **tables}
    partial = path.with_name(f"{path.name}.partial")
    with disk.Writing(path), partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "dsmoe_jax": dsmoe_jax.__version__, **found}


def describe_devices() -> str:
    """The accelerators, e.g. `2 x NVIDIA H100` or `1 x cpu (2 cores)`."""
    kind = jax.devices()[0].device_kind
    cores = f" ({os.cpu_count()} cores)" if jax.default_backend() == "cpu" else ""
    return f"{jax.device_count()} x {kind}{cores}"


def plain(value: Any) -> Any:
    """The value as JSON holds it; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value


def removal(results: Mapping[str, Any]) -> str:
    """Which items were removed from lists, also of results from before there was a third rule."""
    usual = "positives" if results["seen_items_removed"] else "none"
    rule = protocol.RULES[results.get("remove_seen", usual)]
    return f"{rule}, repeats are relevant" if results.get("repeats") else rule


def table(results: dict[str, Any]) -> list[str]:
    """The result as console lines: test recall per scenario of every row, in %."""
    metric = f"recall@{results['k'][0]}"
    names = list(results["scenarios"])
    lines = [
        f"test {metric} in %, {results['candidates']:,} candidates, {removal(results)}",
        "  " + " ".join([f"{'':<34}", *[f"{name:>6}" for name in names], f"{'macro':>6}"]),
    ]
    rows = {**results["references"], "teacher (sampled queries)": results["teacher"]}
    continued = results.get("continued", {})
    rows |= {"yesterday's model": continued.get("yesterday"), "trained anew": continued.get("anew")}
    for label, summary in {**rows, "student": results}.items():
        if summary is None:
            continue
        values = [summary["scenarios"][name][metric] for name in names]
        values.append(summary["macro"][metric])
        lines.append("  " + " ".join([f"{label:<34}", *[f"{100 * v:>6.1f}" for v in values]]))
    return lines
