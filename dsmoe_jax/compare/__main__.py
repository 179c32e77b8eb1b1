"""`python -m dsmoe_jax.compare COMMAND`: the comparison, and what the documentation shows of it."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TypeVar

from dsmoe_jax import main as command_line
from dsmoe_jax import optional
from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import budget, plan, processes, progress, runner, search_space, tune
from dsmoe_jax.compare.report import build, documents, generated
from dsmoe_jax.compare.simulation import designs, simulate

CONFIG = "kuairand:sample"
T = TypeVar("T")


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit status, that of `dsmoe_jax.main`."""
    parser = _make_parser()
    options, rest = parser.parse_known_args(argv)
    overriding = options.command in ("run", "tune", "planted")
    if rest and not (overriding and all(part.startswith("--config.") for part in rest)):
        parser.error(f"unknown argument {rest[0]!r}")
    return command_line.exit_status(lambda: _COMMANDS[options.command](options, tuple(rest)))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsmoe compare",
        description="Runs the comparison of all methods and renders what is known of it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="run every missing cell of tables and figures, then write the report",
        epilog="The same command continues where it was stopped or killed. "
        "--config.FIELD=VALUE overrides a field of every cell, e.g. for a smaller trial.",
    )
    run.add_argument("tables", nargs="+", metavar="TABLE", help=f"{', '.join(plan.TABLES)} or all")
    run.add_argument("--config", default=CONFIG, help="FILE:variant")
    run.add_argument("--budget", choices=sorted(budget.BUDGETS), default="small")
    run.add_argument("--seeds", type=int, help="seeds 0 to N - 1 of every row, not the budget's")
    run.add_argument("--days", help="comma-separated last days to leave out, e.g. 0,2,4")
    run.add_argument("--dir", type=pathlib.Path, help="default: runs/suite-<config>-<budget>")
    run.add_argument("--records", type=pathlib.Path, help="default: <dir>/records")
    run.add_argument(
        "--workers", type=int, default=2, help="cells at a time, fewer where memory is short"
    )
    run.add_argument("--list", action="store_true", help="show every cell's state and end")
    run.add_argument("--array", action="store_true", help="print the range of --cell and end")
    run.add_argument("--cell", type=int, help="run this one of the list, with its teacher")
    search = commands.add_parser(
        "tune",
        help="search hyper-parameters of a method or of a teacher on validation queries",
        epilog="The same command continues where it was stopped or killed; more --trials go on "
        "from there. --config.FIELD=VALUE sets a field of every trial, which is then not searched.",
    )
    search.add_argument("--config", required=True, help="FILE:variant")
    search.add_argument(
        "--stage",
        choices=search_space.STAGES,
        default="student",
        help="whose hyper-parameters: the method's, or those of the ranker of teacher=NAME",
    )
    search.add_argument(
        "--trials", type=int, default=12, help="settings to try, the configuration's own first"
    )
    search.add_argument(
        "--dir",
        type=pathlib.Path,
        help="default: runs/tune-<config>, with -teacher for a teacher's",
    )
    search.add_argument(
        "--workers", type=int, default=2, help="trials at a time, fewer where memory is short"
    )
    written = commands.add_parser("report", help="write the report of finished cells")
    written.add_argument("--config", default=CONFIG, help="FILE:variant")
    written.add_argument("--records", type=pathlib.Path, required=True, help="their folder")
    written.add_argument("--dir", type=pathlib.Path, required=True, help="where to write")
    worlds = commands.add_parser(
        "planted",
        help="run every missing cell of the worlds whose true scores are known",
        epilog="--config.FIELD=VALUE overrides a field of every cell, e.g. for a smaller trial.",
    )
    worlds.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("runs/planted"))
    worlds.add_argument("--seeds", type=int, default=5, help="seeds 1 to N of every world")
    worlds.add_argument("--worlds", default="", help="comma-separated names; all by default")
    worlds.add_argument(
        "--records",
        type=pathlib.Path,
        default=documents.PUBLISHED / "simulation",
        help="folder of the planted worlds' records",
    )
    show = commands.add_parser("render", help="write what is generated in the documentation")
    generated.add_options(show, documents.PUBLISHED)
    return parser


def _run(options: argparse.Namespace, rest: tuple[str, ...]) -> int:
    import jax

    # This process counts multiplications and owns no device: its cells do.
    jax.config.update("jax_platforms", "cpu")
    known = {table: table for table in plan.TABLES}
    chosen = budget.adjust(budget.BUDGETS[options.budget], options.seeds, options.days)
    named = [table for table in options.tables if table != "all"]
    tables = _choose("run", named, known)
    if "all" in options.tables:
        wanted = {*named, *plan.TABLES} if chosen.decisions else {*named, *plan.PRINTED}
        tables = tuple(table for table in plan.TABLES if table in wanted)
    planned = plan.make_cells(tables, options.config, chosen, flags=rest)
    if options.array:
        print(f"0-{len(planned) - 1}")
        return 0
    if options.cell is not None and not 0 <= options.cell < len(planned):
        raise ValueError(f"--cell: expected 0 to {len(planned) - 1}, got {options.cell}")
    folder = options.dir or _folder("suite", options.config, options.budget)
    work = runner.WorkList(planned, folder, options.records)
    workers = processes.fit_workers(options.workers)
    missing = {
        cell.row.name
        for cell, state in zip(work.cells, work.states, strict=True)
        if state.state == "left out"
    }
    if missing:
        labels = "; ".join(peer.label for name, peer in catalogue.PEERS.items() if name in missing)
        print(f"left out: {labels}; {optional.install(catalogue.EXTRA)}")
    if options.list:
        print(progress.whole_list(work.states, workers))
        return 0
    _tell_workers(workers, options.workers)
    states = work.run(workers, options.cell)
    print(progress.summary(states, workers))
    source = build.Source(work.records, options.config, failed=work.folder / "failed")
    if options.cell is None:
        # Lists that share a folder come to their ends together.
        with processes.lock(folder / "report.lock", wait=True):
            print(f"report: {build.write(source, folder / 'report')}")
    return int(any(state.state == "failed" for state in states))


def _tune(options: argparse.Namespace, rest: tuple[str, ...]) -> int:
    workers = processes.fit_workers(options.workers)
    _tell_workers(workers, options.workers)
    # Each has a best setting of its own.
    of_teacher = ("teacher",) if options.stage == "teacher" else ()
    folder = options.dir or _folder("tune", options.config, *of_teacher)
    request = tune.Request(
        options.config, options.trials, folder, workers, rest, stage=options.stage
    )
    best = tune.run(request)
    print(best.read_text(), end="")
    print(f"best setting: {best}; all: {best.with_name('trials.csv')}, trials.png")
    return 0


def _folder(command: str, config: str, *more: str) -> pathlib.Path:
    """The default folder of a command on `FILE:variant`."""
    file, _, variant = config.partition(":")
    parts = (command, pathlib.Path(file).stem, variant.replace(",", "-"), *more)
    return pathlib.Path("runs") / "-".join(part for part in parts if part)


def _tell_workers(workers: int, wanted: int) -> None:
    if workers < wanted:
        print(f"{workers} of {wanted} workers: no more fit memory and cores")


def _report(options: argparse.Namespace, rest: tuple[str, ...]) -> int:
    source = build.Source(options.records, options.config)
    print(f"report: {build.write(source, options.dir)}")
    return 0


def _planted(options: argparse.Namespace, rest: tuple[str, ...]) -> int:
    known = {world.name: world for world in designs.WORLDS}
    chosen = _choose("--worlds", _split(options.worlds), known)
    # All cells run in this process, with the compilations of earlier ones at hand.
    command = ["", f"--config={simulate.CONFIG}:{chosen[0].name}", *rest]
    command_line.start_jax(command_line.parse(command))
    simulate.run_all(options.dir, options.seeds, options.records, worlds=chosen, arguments=rest)
    return 0


def _render(options: argparse.Namespace, rest: tuple[str, ...]) -> int:
    source = build.Source(options.records / "comparison", CONFIG)
    made = documents.Documents(source, options.records / "simulation")
    blocks = {**made.blocks, "help": lambda: generated.show_help("dsmoe_jax.compare", main)}
    return generated.render(documents.MAKER, blocks, options)


def _choose(what: str, names: Sequence[str], known: dict[str, T]) -> tuple[T, ...]:
    """The named values in the order asked for; all of them where none is named."""
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: expected names among {', '.join(known)}, got {name!r}")
    return tuple(known[name] for name in names or known)


def _split(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


_COMMANDS = {
    "run": _run,
    "tune": _tune,
    "report": _report,
    "planted": _planted,
    "render": _render,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
