"""`python -m dsmoe_jax.suite run|render`: the README's results table."""

import argparse
import pathlib
import sys

from dsmoe_jax.suite import cells, render, rows

PUBLISHED = pathlib.Path(__file__).resolve().parent / "published"


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dsmoe_jax.suite",
        description="Runs the cells of the README's table, or renders it from finished ones.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run every missing cell; continues where it was stopped")
    run.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("runs/readme"))
    run.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 of every row")
    run.add_argument("--rows", default="", help="comma-separated names; all rows by default")
    show = commands.add_parser("render", help="write the table into the README")
    show.add_argument("--readme", type=pathlib.Path, default=pathlib.Path("README.md"))
    options = parser.parse_args(argv)
    try:
        if options.command == "run":
            cells.run_all(_choose(options.rows), options.dir, options.seeds, PUBLISHED)
        else:
            records = render.load(PUBLISHED, rows.README_ROWS)
            render.write_into(options.readme, render.results_table(records, rows.README_ROWS))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _choose(names: str) -> tuple[rows.Row, ...]:
    wanted = [name for name in names.split(",") if name]
    known = {row.name: row for row in rows.README_ROWS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"--rows: unknown row {unknown[0]!r}; known: {', '.join(known)}")
    return tuple(known[name] for name in wanted) if wanted else rows.README_ROWS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
