"""`python -m dsmoe_jax.compare COMMAND`: comparison, tuning, simulation, and generated pages."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from dsmoe_jax import main as command_line
from dsmoe_jax import optional
from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import (
    cluster,
    hits,
    plan,
    processes,
    progress,
    runner,
    search,
    tune,
)
from dsmoe_jax.compare.report import build, documents, generated, plus
from dsmoe_jax.compare.simulation import designs
from dsmoe_jax.config import load

CONFIG = "kuairand:sample"
T = TypeVar("T")


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit status, that of `dsmoe_jax.main`."""
    parser = _make_parser()
    options, rest = parser.parse_known_args(argv)
    overriding = options.command in ("run", "tune", "simulate")
    if rest and not (overriding and all(part.startswith("--config.") for part in rest)):
        parser.error(f"unknown argument {rest[0]!r}")
    return command_line.exit_status(lambda: options.call(options, _read_overrides(rest)))


def _read_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Fields and texts of their values, of `--config.FIELD=VALUE`."""
    pairs = [argument.removeprefix("--config.").partition("=") for argument in arguments]
    for argument, (_, is_assigned, _) in zip(arguments, pairs, strict=True):
        if not is_assigned:
            raise load.UsageError(f"{argument}: expected --config.FIELD=VALUE, got no value")
    return {field: value for field, _, value in pairs}


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsmoe compare",
        description="Runs the comparison of all methods, searches and simulations; renders them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="run every missing job of tables and figures, then write the report",
        epilog="The same command continues where it was stopped or killed. "
        "--config.FIELD=VALUE overrides a field of every job, e.g. for a smaller trial.",
    )
    run.add_argument("tables", nargs="+", metavar="TABLE", help=f"{', '.join(plan.TABLES)} or all")
    run.add_argument("--config", default=CONFIG, help="FILE:variant")
    run.add_argument("--budget", choices=sorted(plan.BUDGETS), default="small")
    run.add_argument("--seeds", type=int, help="seeds 0 to N - 1 of every system, not the budget's")
    run.add_argument("--days", help="comma-separated last days to leave out, e.g. 0,2,4")
    run.add_argument("--dir", type=pathlib.Path, help="default: runs/compare-<config>-<budget>")
    run.add_argument("--records", type=pathlib.Path, help="default: <dir>/records")
    run.add_argument("--list", action="store_true", help="show every job's state and end")
    run.add_argument("--job", help="run the job of this name alone, with its teacher")
    tuned = commands.add_parser(
        "tune",
        help="search hyper-parameters of a method or of a teacher on validation queries",
        epilog="The same command continues where it was stopped or killed; more --trials go on "
        "from there. --config.FIELD=VALUE sets a field of every trial, which is then not searched.",
    )
    tuned.add_argument("--config", required=True, help="FILE:variant")
    tuned.add_argument(
        "--stage",
        choices=search.STAGES,
        default="student",
        help="whose hyper-parameters: the method's, or those of the ranker of teacher=NAME",
    )
    tuned.add_argument(
        "--trials", type=int, default=12, help="settings to try, the configuration's own first"
    )
    tuned.add_argument(
        "--dir",
        type=pathlib.Path,
        help="default: runs/tune-<config>, with -teacher for a teacher's",
    )
    packed = commands.add_parser("pack", help="move hits per query of all records into one file")
    packed.add_argument("--records", type=pathlib.Path, required=True, help="their folder")
    written = commands.add_parser("report", help="write the report of finished jobs")
    written.add_argument("--config", default=CONFIG, help="FILE:variant")
    written.add_argument("--records", type=pathlib.Path, required=True, help="their folder")
    written.add_argument("--dir", type=pathlib.Path, required=True, help="where to write")
    worlds = commands.add_parser(
        "simulate",
        help="run every missing job of the worlds whose true scores are known",
        epilog="--config.FIELD=VALUE overrides a field of every job, e.g. for a smaller trial.",
    )
    worlds.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("runs/simulation"))
    worlds.add_argument("--seeds", type=int, default=5, help="seeds 1 to N of every world")
    worlds.add_argument("--worlds", default="", help="comma-separated names; all by default")
    worlds.add_argument(
        "--records",
        type=pathlib.Path,
        default=documents.PUBLISHED / "simulation",
        help="folder of the simulation's records",
    )
    show = commands.add_parser("render", help="write what is generated in the documentation")
    generated.add_options(show, documents.PUBLISHED)
    tuned.set_defaults(cluster=None)
    calls = {run: _run, tuned: _tune, packed: _pack, written: _report, worlds: _simulate}
    for command, call in (*calls.items(), (show, _render)):
        command.set_defaults(call=call)
    for command in (run, tuned, worlds):
        command.add_argument(
            "--workers", type=int, help="jobs at a time; here 2, fewer where memory is short"
        )
    for command in (run, worlds):
        command.add_argument(
            "--cluster", choices=cluster.KINDS, help="submit jobs, as an array, with submitit"
        )
        command.add_argument(
            "--submit",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a parameter of submitit's executor, e.g. slurm_partition=gpu or timeout_min=600",
        )
    return parser


def _run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    chosen = plan.adjust_budget(plan.BUDGETS[options.budget], options.seeds, options.days)
    named = [table for table in options.tables if table != "all"]
    tables = _choose("run", named, {table: table for table in plan.TABLES})
    if "all" in options.tables:
        wanted = {*named, *plan.TABLES} if chosen.decisions else {*named, *plan.PRINTED}
        tables = tuple(table for table in plan.TABLES if table in wanted)
    planned = plan.make_jobs(tables, options.config, chosen, overrides=overrides)
    folder = options.dir or _folder("compare", options.config, options.budget)
    work = runner.Runner(planned, folder, options.records)
    stands = zip(work.jobs, work.states, strict=True)
    missing = dict.fromkeys(job.system.name for job, s in stands if s.state == "left out")
    if missing:
        labels = "; ".join(catalogue.EXTERNAL[name].label for name in missing)
        print(f"left out: {labels}; {optional.install(catalogue.EXTRA)}")
    names = [state.name for state in work.states]
    if options.job not in (None, *names):
        nearest = load.nearest(options.job, names)
        raise ValueError(f"--job: expected a name of --list, got {options.job!r}{nearest}")
    if options.list:
        print(progress.whole_list(work.states, options.workers or 2))
        return 0
    status = _run_jobs(work, options, names.index(options.job) if options.job else None)
    source = build.Source(work.records, options.config, failed=work.folder / "failed")
    if not options.job:
        # Runners that share a folder come to their ends together.
        with processes.lock(folder / "report.lock", wait=True):
            print(f"report: {build.write(source, folder / 'report')}")
    return status


def _run_jobs(work: runner.Runner, options: argparse.Namespace, only: int | None = None) -> int:
    """Runs the jobs that are not done; 1 where one failed."""
    machine = _make_machine(options, work.folder)
    states = work.run(machine, only)
    print(progress.summary(states, machine.workers))
    return int(any(state.state == "failed" for state in states))


def _make_machine(options: argparse.Namespace, folder: pathlib.Path) -> processes.Machine:
    """This machine, or the cluster that is asked for."""
    import jax

    # This process counts multiplications and owns no device: its jobs do.
    settings: Any = jax.config
    settings.update("jax_platforms", "cpu")
    if options.cluster:
        given = dict(text.partition("=")[::2] for text in options.submit)
        typed = {name: int(text) if text.isdigit() else text for name, text in given.items()}
        return cluster.Cluster(
            options.cluster, folder / "submitted", options.workers or cluster.WORKERS, typed
        )
    wanted = 2 if options.workers is None else options.workers
    workers = processes.fit_workers(wanted)
    if workers < wanted:
        print(f"{workers} of {wanted} workers: no more fit memory and cores")
    return processes.ThisMachine(workers)


def _tune(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    # Each has a best setting of its own.
    of_teacher = "teacher" if options.stage == "teacher" else ""
    folder = options.dir or _folder("tune", options.config, of_teacher)
    request = search.Request(
        options.config, options.trials, str(folder), overrides, stage=options.stage
    )
    best = tune.run(request, _make_machine(options, folder))
    print(best.read_text(), end="")
    print(f"best setting: {best}; all: {best.with_name('trials.csv')}, trials.png")
    return 0


def _folder(command: str, config: str, more: str) -> pathlib.Path:
    """The default folder of a command on `FILE:variant`."""
    file, variant = load.split(config)
    parts = (command, pathlib.Path(file).stem, variant.replace(",", "-"), more)
    return pathlib.Path("runs") / "-".join(part for part in parts if part)


def _report(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    source = build.Source(options.records, options.config)
    print(f"report: {build.write(source, options.dir)}")
    return 0


def _pack(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    print(f"hits: {hits.pack(options.records)}")
    return 0


def _simulate(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    known = {world.name: world for world in designs.WORLDS}
    names = [name for name in options.worlds.split(",") if name]
    chosen = _choose("--worlds", names, known)
    planned = designs.make_jobs(chosen, range(1, options.seeds + 1), overrides)
    return _run_jobs(runner.Runner(planned, options.dir, options.records), options)


def _render(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    source = build.Source(options.records / "comparison", CONFIG)
    plus_inputs = build.Source(options.records / "plus", plus.CONFIG)
    made = documents.Documents(source, options.records / "simulation", plus_inputs)
    blocks = {**made.blocks, "help": lambda: generated.show_help("dsmoe_jax.compare", main)}
    return generated.render(documents.MAKER, blocks, options)


def _choose(what: str, names: Sequence[str], known: dict[str, T]) -> tuple[T, ...]:
    """The named values in the order asked for; all of them where none is named."""
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: expected names among {', '.join(known)}, got {name!r}")
    return tuple(known[name] for name in names or known)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
