"""`python -m dsmoe_jax.bench step`: how fast, against what, and how far from the limit."""

import argparse
import json
import pathlib
import sys

from dsmoe_jax.bench import cases, step


def main(argv: list[str]) -> int:
    """Runs one measurement; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dsmoe_jax.bench",
        description="Measurements; quote medians and ratios from two quiet cores.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    steps = commands.add_parser("step", help="a training step against PyTorch twins")
    steps.add_argument("--shape", choices=sorted(cases.CASES), default="kuairand")
    steps.add_argument("--distill", action="store_true", help="with a teacher in the step")
    steps.add_argument("--ours", default="dense", help=f"of {', '.join(step.OURS)}")
    steps.add_argument("--twins", default="eager,compile", help=f"of {', '.join(step.TWINS)}")
    steps.add_argument("--hidden_dim", type=int, default=256)
    steps.add_argument("--output_dim", type=int, default=128)
    steps.add_argument("--rounds", type=int, default=15)
    steps.add_argument("--repetitions", type=int, default=5, help="steps in a turn")
    steps.add_argument("--json", type=pathlib.Path, help="also write the result here")
    options = parser.parse_args(argv)
    chosen = {}
    for flag, known in (("ours", step.OURS), ("twins", step.TWINS)):
        chosen[flag] = tuple(name for name in getattr(options, flag).split(",") if name)
        for name in chosen[flag]:
            if name not in known:
                parser.error(f"--{flag}: expected names among {', '.join(known)}, got {name!r}")
    if not chosen["ours"]:
        parser.error(f"--ours: expected names among {', '.join(step.OURS)}, got none")
    try:
        found = step.run(
            shape=options.shape,
            distill=options.distill,
            **chosen,
            overrides={"hidden_dim": options.hidden_dim, "output_dim": options.output_dim},
            rounds=options.rounds,
            repetitions=options.repetitions,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(step.describe(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
