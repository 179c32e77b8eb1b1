"""One accelerator in at most eight minutes: its peaks, and how far from them the product is.

Owns the order of things, the budget and the table. What does not fit the budget is left out and
said so, and so is what a device cannot do; each row is shown as soon as it is measured, so that a
measurement that is killed has said what it found.
"""

import argparse
import gc
import importlib.metadata
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from dsmoe_jax.bench import device_work

HEADS = ("part", "what", "ms", "first call, s", "rate", "of the peak")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument(
        "--budget_s", type=float, default=480.0, help="seconds after which nothing more is begun"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=device_work.PARTS,
        default=device_work.PARTS,
        help="what is measured, in this order; all",
    )
    parser.add_argument(
        "--small", action="store_true", help="sizes for a CPU, which say nothing of a device"
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times every job that the budget holds; see `device_work.Sizes` for the sizes."""
    start_s = time.perf_counter()
    sizes = device_work.SMALL if options.small else device_work.Sizes()
    found: dict[str, Any] = {
        "device": describe_device(),
        "small": options.small,
        "budget_s": options.budget_s,
        "entries": [],
        "left_out": [],
    }
    for job in device_work.list_jobs(sizes, tuple(options.parts)):
        about = {"part": job.part, "name": job.name}
        if time.perf_counter() - start_s >= options.budget_s:
            found["left_out"].append({**about, "why": "the budget was spent"})
            continue
        try:
            entry = {**about, **job.measure()}
        except (ValueError, RuntimeError, MemoryError) as error:
            # A device that lacks memory or a library still answers all else.
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            found["left_out"].append({**about, "why": why})
            _show(f"{job.part}: {job.name}: left out: {why}")
        else:
            found["entries"].append(add_share(entry, found["entries"]))
            _show(_line(row(entry)))
        gc.collect()  # arrays of a job that refers to itself would still fill the device
    return {**found, "elapsed_s": time.perf_counter() - start_s}


def describe_device() -> dict[str, Any]:
    """What the first device is, and by what it is driven."""
    device = jax.devices()[0]
    statistics = device.memory_stats() or {}
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "memory_bytes": statistics.get("bytes_limit", 0),
        "driver": " ".join(device.client.platform_version.split()),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
    }


def add_share(entry: dict[str, Any], before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entry with `share`, its operations per second against those of its `peak`, if known."""
    peaks = {other["name"]: other for other in before if other["part"] == "peaks"}
    peak = peaks.get(entry.get("peak", ""))
    if peak is not None and entry.get("flop"):
        entry["share"] = _per_second(entry, "flop") / _per_second(peak, "flop")
    return entry


def row(entry: dict[str, Any]) -> tuple[str, ...]:
    """The cells of an entry, one for each of `HEADS`."""
    seconds = entry["seconds"]
    ms = (
        f"{1e3 * seconds['median']:,.3f} "
        f"[{1e3 * seconds['least']:,.3f}, {1e3 * seconds['greatest']:,.3f}]"
    )
    rates = []
    if "queries" in entry:
        rates.append(f"{_per_second(entry, 'queries'):,.0f} queries/s")
    if entry.get("flop"):
        rates.append(f"{_per_second(entry, 'flop') / 1e12:,.2f} TFLOP/s")
    if entry.get("bytes"):
        rates.append(f"{_per_second(entry, 'bytes') / 1e9:,.0f} GB/s")
    share = f"{entry['share']:.1%} of {entry['peak']}" if "share" in entry else ""
    first = f"{entry['first_s']:.1f}"
    return entry["part"], entry["name"], ms, first, ", ".join(rates), share


def describe(found: dict[str, Any]) -> list[str]:
    """The result as a table in Markdown, under the device and above what is missing."""
    device = found["device"]
    memory = (
        f", {device['memory_bytes'] / 2**30:,.0f} GiB for JAX" if device["memory_bytes"] else ""
    )
    lines = [
        f"{device['devices']} x {device['kind']} ({device['platform']}){memory}; jax "
        f"{device['jax']}, jaxlib {device['jaxlib']}; {device['driver']}",
        f"medians [least, greatest] of rounds, in {found['elapsed_s']:.0f} s"
        + ("; small sizes, which say nothing of a device" if found["small"] else ""),
        "",
        _line(HEADS),
        _line(["---"] * len(HEADS)),
        *(_line(row(entry)) for entry in found["entries"]),
    ]
    if found["left_out"]:
        left = (f"- {one['part']}: {one['name']}: {one['why']}" for one in found["left_out"])
        lines += ["", "Left out:", "", *left]
    return lines


def _per_second(entry: dict[str, Any], what: str) -> float:
    rate: float = entry[what] / entry["seconds"]["median"]
    return rate


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
