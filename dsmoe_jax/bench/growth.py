"""Step time by the rows of the tables.

Owns the comparison of our step with itself at different table sizes: a batch touches as many rows
whatever their number, so that with updates of single rows the step should take as long.
"""

import argparse
from typing import Any

from dsmoe_jax.bench import ours, pairs


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument(
        "--rows", type=pairs.numbers(8), default=(10_000, 100_000, 1_000_000, 10_000_000)
    )
    parser.add_argument("--embedding", choices=("dense", "row_sparse"), default="row_sparse")
    parser.add_argument("--hidden_dim", type=int, default=256)
    parser.add_argument("--output_dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repetitions", type=int, default=5, help="steps in a turn")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times steps that differ in the rows of their tables, in turns."""
    overrides = {"hidden_dim": options.hidden_dim, "output_dim": options.output_dim}
    contestants = {
        f"{rows:,} rows": pairs.Contestant(
            ours.build,
            (ours.Wanted(str(rows), False, options.embedding, overrides, min_rows=1), None),
        )
        for rows in options.rows
    }
    timings = pairs.take_turns(
        contestants, rounds=options.rounds, repetitions=options.repetitions, warmup=5
    )
    first = next(iter(timings.values()))
    return {
        "embedding": options.embedding,
        "step_ms": {name: 1e3 * timing.median for name, timing in timings.items()},
        "ratio": {name: pairs.ratio(timing, first) for name, timing in timings.items()},
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    lines = [f"step with {found['embedding']} updates, by the rows of its two id tables:"]
    for name, step_ms in found["step_ms"].items():
        ratio = pairs.show_ratio(found["ratio"][name], "the first")
        lines.append(f"  {name:>18} {step_ms:8.1f} ms, {ratio}")
    return lines
