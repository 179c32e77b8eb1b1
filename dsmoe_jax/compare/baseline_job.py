"""Judges a system without towers as a run judges a model.

Owns the command line of one cell of the comparison: the reference rows, or a peer from a library of
its own. Which systems there are is in `baselines/catalogue.py`.

    python -m dsmoe_jax.compare.baseline_job --system references --config FILE:variant --workdir DIR
"""

import argparse
import importlib
import pathlib
import sys
import time

from dsmoe_jax import main as command_line
from dsmoe_jax.baselines import builtin, catalogue
from dsmoe_jax.compare import hits, records
from dsmoe_jax.config import load
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import results


def main(argv: list[str]) -> int:
    """Runs one system; returns the exit status, that of `dsmoe_jax.main`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--system", nargs="?")
    options, rest = parser.parse_known_args(argv)
    name = options.system
    try:
        if name not in catalogue.SYSTEMS:
            raise load.UsageError(
                f"--system: expected one of {', '.join(catalogue.SYSTEMS)}, got {name or 'none'}"
            )
        catalogue.require(name)
        parsed = command_line.parse(["dsmoe_jax", *rest])
        parsed.experiment.validate()
        command_line.start_jax(parsed)
        run(name, parsed)
    except (ValueError, OSError, load.UsageError) as error:
        print(f"error: {load.one_line(error)}", file=sys.stderr)
        return 2
    return 0


def run(name: str, options: command_line.Options) -> None:
    """Fits and judges one system and writes its results.json; its libraries must be installed."""
    system = importlib.import_module(catalogue.SYSTEMS[name].module)
    experiment, workdir = options.experiment, options.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    store_dir = pathlib.Path(experiment.data.store_dir or workdir / "store").expanduser()
    experiment.data.prepare(str(store_dir))
    store = store_lib.Store.open(store_dir)
    start_s = time.perf_counter()
    found: list[builtin.Reference] = system.evaluate_references(
        store, experiment.eval, seed=experiment.seed
    )
    seconds = time.perf_counter() - start_s
    first = found[0].test
    record = {
        "dataset": store.manifest["dataset"],
        "versions": {**results.versions(), **catalogue.versions(name)},
        "device": results.describe_devices(),
        "date": results.today(),
        "split": store.manifest["split"],
        "candidates": first.num_candidates,
        "seen_items_removed": first.seen_removed,
        "k": list(experiment.eval.k),
        "time_s": {"system": seconds},
        "systems": {row.name: _as_system(row) for row in found},
    }
    results.save(workdir / results.FILE, record)
    for row in found:
        metric = f"recall@{experiment.eval.k[0]}"
        value = record["systems"][row.name]["macro"][metric]
        print(f"{row.name}: test macro {metric} {100 * value:.1f} %, {row.settings}")


def _as_system(row: builtin.Reference) -> dict:
    summary = {**row.test.summarise(), "validation": row.validation.summarise()}
    queries = hits.from_arrays(results.query_arrays(row.test))
    return {
        **records.summarise(summary),
        "settings": row.settings,
        "queries": hits.encode(queries),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
