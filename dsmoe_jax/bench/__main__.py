"""`python -m dsmoe_jax.bench COMMAND`: how fast, against what, and how far from the limit.

Owns the list of measurements. Each is a module of this package with `add_options(parser)`,
`measure(options)`, whose result JSON can hold, and `describe(found)`, its lines for a console.
"""

import argparse
import json
import pathlib
import sys

from dsmoe_jax import main as command_line
from dsmoe_jax import runlog
from dsmoe_jax.bench import measurements
from dsmoe_jax.compare.report import generated

COMMANDS = {
    "step": "a training step against PyTorch twins of the same model",
    "growth": "how a step's time grows with the rows of its tables",
    "epoch": "an epoch of a run of KuaiRand-Pure's size, and what fifty would take",
    "pipeline": "training batches per second, and how long a training run waits for them",
    "cold": "process start to the end of the first training step, cold and warm cache",
    "evaluate": "full-corpus search against FAISS and PyTorch",
    "million": "a bundle of a million generated items: opened, indexed, asked for lists in bulk",
    "serving": "the service of a bundle under 1 to 64 clients, and its cost above tower and search",
    "prepare": "preparation of Alimama's files against one in pandas: time and memory",
    "device": "one accelerator in eight minutes: peaks, steps and their kernels, search, a run",
    "scale": "a step on 1, 2, 4 and 8 simulated devices: bytes moved and held",
    "daily": "seven rolling days: yesterday's model, one that goes on from it, one trained anew",
    "faults": "injected faults: what runs that are killed, filled up or damaged end with",
    "plan": "what a run of any size would hold and move, without running it",
}


def main(argv: list[str]) -> int:
    """Runs one measurement; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dsmoe_jax.bench",
        description="Measurements; quote medians and ratios from two quiet cores.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("--json", type=pathlib.Path, help="also write the result here")
        if argv and argv[0] == name:
            # Only the measurement that is asked for is imported.
            measurements.load(name).add_options(command)
    render = commands.add_parser("render", help="write the kept measurements in the documentation")
    generated.add_options(render, measurements.PUBLISHED)
    options = parser.parse_args(argv)
    work = _render if options.command == "render" else _measure
    return command_line.exit_status(lambda: work(options, argv))


def _render(options: argparse.Namespace, argv: list[str]) -> int:
    blocks = measurements.blocks(options.records)
    blocks["help"] = lambda: generated.show_help("dsmoe_jax.bench", main)
    return generated.render(measurements.MAKER, blocks, options)


def _measure(options: argparse.Namespace, argv: list[str]) -> int:
    module = measurements.load(options.command)
    found = module.measure(options)
    print("\n".join(module.describe(found)))
    if options.json:
        # Where things are written is no part of the measurement.
        without = argparse.ArgumentParser(add_help=False)
        for flag in ("--json", "--folder"):
            without.add_argument(flag)
        record = measurements.make(options.command, without.parse_known_args(argv[1:])[1], found)
        runlog.replace_text(options.json, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
