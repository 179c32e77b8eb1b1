"""`python -m dsmoe_jax.suite run|planted|render`: the README's tables."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TypeVar

from dsmoe_jax import main as command_line
from dsmoe_jax import overrides, sections, train
from dsmoe_jax import stop as stop_lib
from dsmoe_jax.suite import cells, planted, planted_section, planted_worlds, render, rows

PUBLISHED = pathlib.Path(__file__).resolve().parent / "published"
SECTIONS = (render.RESULTS, render.PLANTED)
T = TypeVar("T")


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit status, that of `dsmoe_jax.main`."""
    parser = _make_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "planted":
        parser.error(f"unknown argument {rest[0]!r}")
    try:
        if options.command == "run":
            table = {row.name: row for row in rows.README_ROWS}
            chosen = _choose("--rows", _split(options.rows), table)
            cells.run_all(chosen, options.dir, options.seeds, PUBLISHED)
        elif options.command == "planted":
            _run_planted(options, tuple(rest))
        else:
            known = {section: section for section in SECTIONS}
            for section in _choose("render", options.sections, known):
                sections.write_into(options.readme, section, _render(section, options.records))
    except stop_lib.InterruptedRunError as stop:
        print(stop, file=sys.stderr)
        return 130
    except train.DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, overrides.UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dsmoe_jax.suite",
        description="Runs the cells of the README's tables, or renders them from finished ones.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run every missing cell; continues where it was stopped")
    run.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("runs/readme"))
    run.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 of every row")
    run.add_argument("--rows", default="", help="comma-separated names; all rows by default")
    worlds = commands.add_parser(
        "planted",
        help="the same for the worlds whose true scores are known",
        epilog="--config.FIELD=VALUE overrides a field of every cell, e.g. for a smaller trial.",
    )
    worlds.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("runs/planted"))
    worlds.add_argument("--seeds", type=int, default=5, help="seeds 1 to N of every world")
    worlds.add_argument("--worlds", default="", help="comma-separated names; all by default")
    show = commands.add_parser("render", help="write sections of the README")
    show.add_argument("sections", nargs="*", help=f"{', '.join(SECTIONS)}; all by default")
    show.add_argument("--readme", type=pathlib.Path, default=pathlib.Path("README.md"))
    for command in (worlds, show):
        command.add_argument(
            "--records",
            type=pathlib.Path,
            default=PUBLISHED / "planted",
            help="folder of the planted worlds' records",
        )
    return parser


def _run_planted(options: argparse.Namespace, arguments: tuple[str, ...]) -> None:
    known = {world.name: world for world in planted_worlds.WORLDS}
    chosen = _choose("--worlds", _split(options.worlds), known)
    # All cells run in this process, with the compilations of earlier ones at hand.
    command = ["", f"--config={planted.CONFIG}:{chosen[0].name}", *arguments]
    command_line.start_jax(command_line.parse(command))
    planted.run_all(options.dir, options.seeds, options.records, worlds=chosen, arguments=arguments)


def _render(section: str, records: pathlib.Path) -> str:
    if section == render.PLANTED:
        finished = planted_section.load(records, planted_worlds.WORLDS)
        return planted_section.section(finished, planted_worlds.WORLDS)
    return render.results_table(render.load(PUBLISHED, rows.README_ROWS), rows.README_ROWS)


def _choose(what: str, names: Sequence[str], known: dict[str, T]) -> tuple[T, ...]:
    """The named values in the order asked for; all of them where none is named."""
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: expected names among {', '.join(known)}, got {name!r}")
    return tuple(known[name] for name in names or known)


def _split(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
