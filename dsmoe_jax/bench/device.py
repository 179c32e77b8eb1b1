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
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from dsmoe_jax.bench import device_batch, device_timing, device_work

HEADS = ("part", "what", "ms", "first call, s", "rate", "of the peak")
BUDGET_S = 450.0
# Of the whole budget's seconds, what is kept for a part while those before it are measured: a
# device that compiles slowly would else never come to the last ones.
RESERVED_S = {
    "dispatch": 20,
    "search": 30,
    "evaluation": 20,
    "twins": 60,
    "batch": 60,
    "command": 90,
}
# Characters of a kernel's name that the table shows; the record holds all of them.
_SHOWN = 48
# A device, driver or library never seen before may fail in any of these ways, and a job that does
# leaves all others their rows.
_FAILURES = (
    ValueError,
    RuntimeError,
    MemoryError,
    OSError,
    ImportError,
    AttributeError,
    TypeError,
    LookupError,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument(
        "--budget_s",
        type=float,
        default=BUDGET_S,
        help="seconds that it may take; %(default)g leave half a minute of eight for the start",
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
    """Times every job that the budget holds; see `device_timing.Sizes` for the sizes."""
    budget = device_timing.Budget(options.budget_s)
    sizes = device_timing.SMALL if options.small else device_timing.Sizes()
    parts = tuple(options.parts)
    found: dict[str, Any] = {
        "device": describe_device(),
        "small": options.small,
        "budget_s": options.budget_s,
        "entries": [],
        "left_out": [],
    }
    longest_s: dict[str, float] = {}
    jobs = list(device_work.list_jobs(sizes, parts, budget))
    for job in order(jobs, parts, budget, options.budget_s / BUDGET_S):
        left_s = budget.left_s()
        if left_s <= 0:
            _leave_out(found, job, "the budget was spent")
        elif left_s < longest_s.get(job.part, 0.0):
            _leave_out(found, job, f"{left_s:.0f} s were left, fewer than such a row took before")
        else:
            start_s = time.perf_counter()
            try:
                entry = {"part": job.part, "name": job.name, **job.measure()}
            except _FAILURES as error:
                _leave_out(found, job, _say(error))
            else:
                found["entries"].append(add_share(entry, found["entries"]))
                for cells in rows(entry):
                    _show(_line(cells))
            elapsed_s = time.perf_counter() - start_s
            longest_s[job.part] = max(elapsed_s, longest_s.get(job.part, 0.0))
            gc.collect()  # arrays of a job that refers to itself would still fill the device
    return {**found, "elapsed_s": budget.elapsed_s()}


def order(
    jobs: Sequence[device_timing.Job],
    parts: Sequence[str],
    budget: device_timing.Budget,
    scale: float,
) -> Iterator[device_timing.Job]:
    """Jobs in their order, but those last for which later parts' time would be taken.

    `scale` is the share of `BUDGET_S` that there is.
    """
    postponed = []
    for job in jobs:
        later = parts_after(job.part, parts)
        if budget.left_s() < scale * sum(RESERVED_S.get(part, 0) for part in later):
            postponed.append(job)
        else:
            yield job
    yield from postponed


def parts_after(part: str, parts: Sequence[str]) -> list[str]:
    """Those of the parts that come after one."""
    at = device_work.PARTS.index(part)
    return [other for other in parts if device_work.PARTS.index(other) > at]


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
    """The entry with its place under the roofline, as far as the peaks are known.

    `share` is its operations per second against those of its `peak`, `copy_share` its bytes per
    second against those of a copy: the larger says what bounds it.
    """
    peaks = {other["name"]: other for other in before if other["part"] == "peaks"}
    for share, name, what in (
        ("share", entry.get("peak", ""), "flop"),
        ("copy_share", device_timing.COPY, "bytes"),
    ):
        if name in peaks and entry.get(what) and entry["part"] != "peaks":
            entry[share] = _per_second(entry, what) / _per_second(peaks[name], what)
    return entry


def rows(entry: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of an entry, with a cell for each of `HEADS`."""
    part, name = entry["part"], entry["name"]
    if "parts_s" in entry:
        return _command_rows(entry)
    if "largest_batch" in entry:
        return [(part, name, "", "", device_batch.describe(entry), "")]
    found = [_timed_row(entry)]
    if "kernels" in entry:
        found += [_kernel_row(entry, kernel) for kernel in entry["kernels"]]
    elif "why_no_kernels" in entry:
        found.append((part, f"{name}: no kernels: {entry['why_no_kernels']}", "", "", "", ""))
    return found


def _timed_row(entry: dict[str, Any]) -> tuple[str, ...]:
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
    shares = [f"{entry['share']:.1%} of {entry['peak']}"] if "share" in entry else []
    if "copy_share" in entry:
        shares.append(f"{entry['copy_share']:.1%} of {device_timing.COPY}")
    first = f"{entry['first_s']:.1f}"
    return entry["part"], entry["name"], ms, first, ", ".join(rates), ", ".join(shares)


def _kernel_row(entry: dict[str, Any], kernel: dict[str, Any]) -> tuple[str, ...]:
    name = kernel["name"]
    shown = name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}..."
    of = f"{kernel['share']:.1%} of {entry['kernel_ms']:,.3f} ms in kernels"
    # The path in the program, but for the functions around all of it.
    op = "/".join(kernel["op"].split("/")[-2:])
    return "kernel", f"{entry['name']}: {shown}", f"{kernel['ms']:,.3f}", "", f"{of}; {op}", ""


def _command_rows(entry: dict[str, Any]) -> list[tuple[str, ...]]:
    total_s = sum(entry["parts_s"].values())
    ended = f", {entry['ended']}" if entry["ended"] else ""
    head = (entry["part"], entry["name"] + ended, f"{1e3 * entry['elapsed_s']:,.0f}", "", "", "")
    return [head] + [
        (entry["part"], part, f"{1e3 * part_s:,.0f}", "", f"{part_s / total_s:.1%} of it", "")
        for part, part_s in entry["parts_s"].items()
    ]


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
        *(_line(cells) for entry in found["entries"] for cells in rows(entry)),
    ]
    return lines + [_line(_left_out_row(one)) for one in found["left_out"]]


def _left_out_row(left: dict[str, Any]) -> tuple[str, ...]:
    return left["part"], left["name"], "left out", "", left["why"], ""


def _leave_out(found: dict[str, Any], job: device_timing.Job, why: str) -> None:
    left = {"part": job.part, "name": job.name, "why": why}
    found["left_out"].append(left)
    _show(_line(_left_out_row(left)))


def _say(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _per_second(entry: dict[str, Any], what: str) -> float:
    rate: float = entry[what] / entry["seconds"]["median"]
    return rate


def _line(cells: Sequence[str]) -> str:
    # A kernel's name or a message may hold what ends a cell.
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
