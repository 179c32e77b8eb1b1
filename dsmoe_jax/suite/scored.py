"""Judges a system without towers as a run judges a model: `python -m dsmoe_jax.suite.scored`.

Owns the command line of one cell of the comparison: the reference rows, or a peer from a library of
its own. A system is a module with `evaluate_references(store, config, *, seed)`, which fits on the
training period, chooses on validation queries and returns `references.Reference` rows.

    python -m dsmoe_jax.suite.scored --system references --config FILE:variant --workdir DIR
"""

import importlib
import pathlib
import sys
import time

from dsmoe_jax import main as command_line
from dsmoe_jax import overrides, references, results
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.suite import per_query, records

# Module of each system.
SYSTEMS = {"references": "dsmoe_jax.references"}


def main(argv: list[str]) -> int:
    """Runs one system; returns the exit status, that of `dsmoe_jax.main`."""
    names = [part.partition("=")[2] for part in argv if part.startswith("--system=")]
    rest = [part for part in argv if not part.startswith("--system=")]
    try:
        if len(names) != 1 or names[0] not in SYSTEMS:
            raise overrides.UsageError(
                f"--system: expected one of {', '.join(SYSTEMS)}, got {', '.join(names) or 'none'}"
            )
        options = command_line.parse(["dsmoe_jax", *rest])
        options.experiment.validate()
        command_line.start_jax(options)
        run(names[0], options)
    except (ValueError, OSError, overrides.UsageError, ModuleNotFoundError) as error:
        print(f"error: {overrides.one_line(error)}", file=sys.stderr)
        return 2
    return 0


def run(name: str, options: command_line.Options) -> None:
    """Fits and judges one system and writes its results.json.

    Raises:
      ModuleNotFoundError: When its library is not installed.
    """
    system = importlib.import_module(SYSTEMS[name])
    experiment, workdir = options.experiment, options.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    store_dir = pathlib.Path(experiment.data.store_dir or workdir / "store").expanduser()
    experiment.data.prepare(str(store_dir))
    store = store_lib.Store.open(store_dir)
    start_s = time.perf_counter()
    found: list[references.Reference] = system.evaluate_references(
        store, experiment.eval, seed=experiment.seed
    )
    seconds = time.perf_counter() - start_s
    first = found[0].test
    record = {
        "dataset": store.manifest["dataset"],
        "versions": results.versions(),
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


def _as_system(row: references.Reference) -> dict:
    summary = {**row.test.summarise(), "validation": row.validation.summarise()}
    queries = per_query.from_arrays(results.query_arrays(row.test))
    return {
        **records.summarise(summary),
        "settings": row.settings,
        "queries": per_query.encode(queries),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
