"""Rolling days: a run that goes on from yesterday's, day after day, beside runs trained anew.

Owns the days. Each tests on its last day and validates on the one before; every run goes on from
the run of the day before, which went on itself, so that what is lost would add up.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

import dsmoe_jax
from dsmoe_jax import main as command_line
from dsmoe_jax import runlog

MODELS = {"yesterday": "yesterday's", "continued": "continued", "anew": "trained anew"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("--config", default="kuairand:sample,plus,fism")
    parser.add_argument("--days", type=int, default=7, help="days that follow the first run's")
    parser.add_argument("--left", type=int, default=0, help="the last of these days are left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=3, help="train.continue_epochs")
    parser.add_argument("--folder", type=pathlib.Path, help="of the runs; kept, and gone on with")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Recall on every day's test queries, and seconds of training."""
    command_line.start_jax()
    rows = []
    with _folder(options.folder) as folder:
        for seed in options.seeds:
            before = None
            for dropped in range(options.days, options.left - 1, -1):
                workdir = folder / f"seed{seed}-dropped{dropped}"
                fields = {
                    "seed": seed,
                    "data.drop_last_days": dropped,
                    "data.validation_days": 1,
                    "data.test_days": 1,
                    "train.continue_epochs": options.epochs,
                    "eval.references": False,
                    "checkpoint.bundle": False,
                }
                experiment = dsmoe_jax.load_config(options.config, **fields)
                model = dsmoe_jax.train(
                    experiment, workdir, continue_from=before, anew=before is not None
                )
                if before is not None:
                    rows.append({"seed": seed, **summarise(model.results)})
                    runlog.say(f"seed {seed}: {rows[-1]}")
                before = workdir
    asked = {"config": options.config, "days": options.days, "epochs": options.epochs}
    return {**asked, "rows": rows}


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """The new day, macro recall there of the three models, and seconds of training of two."""
    metric, continued = f"recall@{results['k'][0]}", results["continued"]
    found = {"yesterday": continued["yesterday"], "continued": results, "anew": continued["anew"]}
    times = {"continued": results["time_s"], "anew": continued["anew"]["time_s"]}
    stages = ("teacher", "pretraining", "student")
    return {
        "day": results["split"]["test"]["days"][-1],
        "metric": metric,
        "device": results["device"],
        "candidates": results["candidates"],
        "queries": sum(row["queries"] for row in results["scenarios"].values()),
        "recall": {name: summary["macro"][metric] for name, summary in found.items()},
        "train_s": {name: sum(time[s] for s in stages) for name, time in times.items()},
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The result as lines of a table in Markdown: means over seeds, and of all days."""
    rows = found["rows"]
    days: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        days.setdefault(row["day"], []).append(row)
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"`{found['config']}`, {len(days)} of {found['days']} days: "
        f"macro {rows[0]['metric']} in %, {'mean of seeds' if len(seeds) > 1 else 'seed'} "
        f"{', '.join(map(str, seeds))}; seconds of training in brackets",
        "",
        f"| test day | queries | {' | '.join(MODELS.values())} |",
        "|---|---:" + "|---:" * len(MODELS) + "|",
    ]
    for day, of_day in days.items():
        lines.append(f"| {day} | {of_day[0]['queries']:,} | {_cells(of_day)} |")
    lines.append(f"| mean | | {_cells(rows)} |")
    return lines


def _cells(rows: list[dict[str, Any]]) -> str:
    cells = []
    for name in MODELS:
        cell = f"{100 * statistics.mean(row['recall'][name] for row in rows):.1f}"
        if name in rows[0]["train_s"]:
            cell += f" ({statistics.mean(row['train_s'][name] for row in rows):.0f} s)"
        cells.append(cell)
    return " | ".join(cells)


@contextlib.contextmanager
def _folder(given: pathlib.Path | None) -> Iterator[pathlib.Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_daily_") as name:
        yield pathlib.Path(name)
