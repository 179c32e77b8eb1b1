"""A training step against PyTorch twins of the same model, in turns.

Owns who runs against whom. All draw their negatives and gather the candidates' features in the
step; all run on the same batches, which are on the device already. Before anything is timed each
twin shows that it computes the same loss and gradients from the same weights.
"""

import argparse
import dataclasses
import itertools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from dsmoe_jax import optional
from dsmoe_jax.bench import ours as ours_lib
from dsmoe_jax.bench import pairs, twin_step
from dsmoe_jax.capacity import cases

TWINS = ("eager", "compile", "sparse")
OURS = ("dense", "row_sparse")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("--shape", choices=sorted(cases.CASES), default="kuairand")
    parser.add_argument("--distill", action="store_true", help="with a teacher in the step")
    parser.add_argument(
        "--ours", type=_names(OURS, 1), default=("dense",), help=f"of {', '.join(OURS)}"
    )
    parser.add_argument(
        "--twins", type=_names(TWINS, 0), default=TWINS[:2], help=f"of {', '.join(TWINS)}"
    )
    parser.add_argument(
        "--plain_twins",
        action="store_true",
        help="twins use the C library's defaults; without this they keep freed memory as we do",
    )
    parser.add_argument("--hidden_dim", type=int, default=256)
    parser.add_argument("--output_dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repetitions", type=int, default=5, help="steps in a turn")


def _names(known: tuple[str, ...], at_least: int) -> Callable[[str], tuple[str, ...]]:
    """A flag's type: names among `known`, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name)
        if len(names) < at_least or not set(names) <= set(known):
            raise argparse.ArgumentTypeError(
                f"expected names among {', '.join(known)}, got {text!r}"
            )
        return names

    return parse


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times our steps and their twins.

    Raises:
      ValueError: When a twin is not equal to ours, or cannot be built.
    """
    overrides = {"hidden_dim": options.hidden_dim, "output_dim": options.output_dim}
    if options.twins:
        optional.require("torch", extra="cpu,bench")
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name:
        folder = pathlib.Path(name)
        wanted = ours_lib.Wanted(options.shape, options.distill, overrides=overrides)
        contestants: dict[str, pairs.Contestant] = {}
        for name in options.ours:
            # The first leaves for the twins what they are checked against.
            leave = folder if options.twins and not contestants else None
            contestants[f"dsmoe_jax {name}"] = pairs.Contestant(
                ours_lib.build, (dataclasses.replace(wanted, embedding=name), leave)
            )
        for twin in options.twins:
            contestants[f"PyTorch {twin}"] = pairs.Contestant(
                twin_step.build,
                (options.shape, options.distill, twin, folder),
                keeps_freed=not options.plain_twins,
            )
        alone = {"parts": pairs.Contestant(ours_lib.build_parts, (wanted,))}
        parts = pairs.take_turns(alone, rounds=0, repetitions=0, warmup=0)["parts"].notes
        timings = pairs.take_turns(
            contestants, rounds=options.rounds, repetitions=options.repetitions, warmup=5
        )
    return {
        "shape": options.shape,
        "distill": options.distill,
        "plain_twins": options.plain_twins,
        "positives": cases.POSITIVES,
        "candidates": cases.POSITIVES * (1 + cases.NEGATIVES),
        "step_ms": {name: 1e3 * timing.median for name, timing in timings.items()},
        # How many times as long each takes as each of ours, in the same round.
        "ratio": {
            own: {
                name: pairs.ratio(timing, timings[f"dsmoe_jax {own}"])
                for name, timing in timings.items()
                if name != f"dsmoe_jax {own}"
            }
            for own in options.ours
        },
        **parts,
        "notes": {name: timing.notes for name, timing in timings.items()},
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    notes = next(iter(found["notes"].values()))
    products_ms = 1e3 * notes["matmul_flop"] / found["peak_flop_per_s"]
    teacher = " with its teacher" if found["distill"] else ""
    lines = [
        f"step, {found['shape']} shape{teacher}: {found['positives']} positives, "
        f"{found['candidates']:,} pairs",
        f"  machine: {found['peak_flop_per_s'] / 1e9:,.0f} GFLOP/s in a large product, "
        f"{found['peak_byte_per_s'] / 1e9:,.1f} GB/s in a copy",
        f"  matrix products of our step: {notes['matmul_flop'] / 1e9:.2f} GFLOP, "
        f"{products_ms:.1f} ms at that rate",
    ]
    until_ms = itertools.accumulate(found["parts_ms"].values())
    # A part alone writes what it hands on, which the whole does not, so that it may take longer.
    parts = ", with ".join(
        f"{name} {ms:.1f}" for name, ms in zip(found["parts_ms"], until_ms, strict=True)
    )
    lines.append(f"  the dense step by parts, ms: {parts}")
    for name, step_ms in found["step_ms"].items():
        texts = [f"  {name:<22} {step_ms:8.1f} ms, {step_ms / products_ms:5.2f} x the products"]
        for own, ratios in found["ratio"].items():
            if name in ratios:
                texts.append(pairs.show_ratio(ratios[name], own))
        lines.append(", ".join(texts))
    return lines
