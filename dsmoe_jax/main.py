"""Command line: flags, the configuration file, the processes of a run, one call.

Heavy imports happen after the flags are known to be right: `--help` and a misspelt flag answer at
once.
"""

import argparse
import dataclasses
import difflib
import importlib
import os
import pathlib
import re
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from dsmoe_jax import console, malloc
from dsmoe_jax.config import load, schema

HELP = """\
dsmoe: train, distil, evaluate and serve multi-scenario matching models.

usage: dsmoe COMMAND ...        (also: python -m dsmoe_jax COMMAND ...)

  train     prepare the data, train, distil, evaluate and report
  prepare   prepare the data alone
  evaluate  evaluate and report what was trained, e.g. with other cut-offs
  export    write the serving bundle of a run, see dsmoe export --help
  demo      train on the packaged rows and serve a page of lists, see dsmoe demo --help
  bundle    verify, show, compare, replay or push a bundle, see dsmoe bundle --help
  index     choose an index for a bundle by measurement, see dsmoe index --help
  recommend lists of items for users, see dsmoe recommend --help
  serve     answer over HTTP from a bundle, see dsmoe serve --help
  init      dsmoe init NAME: write NAME.py, a commented configuration for your own logs
  compare   the comparison of all methods, see dsmoe compare --help
  plan      what a run of any size would hold and move, see dsmoe plan --help

usage: dsmoe train --config NAME|FILE[:token,token] [--workdir DIR] [--mode MODE]
                   [--continue_from DIR [--anew]] [--config.FIELD=VALUE ...]

  --config NAME|FILE[:tokens]
                          a packaged configuration (alimama, custom, kuairand, movielens,
                          simulation)
                          or a file, and its variant; tokens in any order, one per axis
  --workdir DIR           where everything is written (default runs/<name>-<tokens>); the same
                          command with the same folder resumes
  --mode MODE             all (default), prepare, teacher, student, evaluate or export; each
                          continues from what the earlier ones left
  --continue_from DIR     go on from the finished run in DIR, on a log that grew: known ids keep
                          what they learned, new ones are added (train.continue_epochs passes);
                          the report has yesterday's model too. DIR is only read
  --anew                  with --continue_from: also trains a model anew, in <workdir>/anew, and
                          reports it beside (off by default: it takes as long as a whole run)
  --config.FIELD=VALUE    overrides one field, e.g. --config.train.learning_rate=3e-4
  --coordinator HOST:PORT, --num_processes N, --process_id I
                          several processes or hosts, see launch/README.md (also from
                          DSMOE_COORDINATOR, DSMOE_NUM_PROCESSES, DSMOE_PROCESS_ID; SLURM is
                          detected)
  --traceback             show where an error came from

examples:
  # the packaged real rows: prepare, teach, distil, evaluate
  dsmoe train --config kuairand:sample
  # an ablation, another seed, a folder of its own
  dsmoe train --config kuairand:sample,no_sap --config.seed=1 --workdir runs/no_sap-1
  # the full official archive
  dsmoe train --config kuairand --config.data.raw_dir=~/KuaiRand-Pure/data
  # synthetic rows in Alimama's official format
  dsmoe train --config alimama:synthetic
  # evaluate again with seen items kept
  dsmoe evaluate --config kuairand:sample --config.eval.remove_seen=none
  # lists of items for users, from the bundle that a run ends with
  dsmoe recommend runs/kuairand-sample/bundle --users users.csv --k 50 --out lists.parquet
  # your own log: say which column is what, then train
  dsmoe init my_shop
  dsmoe train --config my_shop.py --config.data.raw_dir=FOLDER
  # the next day: the grown log, from yesterday's model; DIR/bundle serves it
  dsmoe train --config my_shop.py --config.data.raw_dir=FOLDER --continue_from runs/monday
              --workdir runs/tuesday
  # a file of a checkout; without a command, flags train
  python -m dsmoe_jax.main --config configs/kuairand.py:sample

fields worth knowing: seed, data.raw_dir, data.validation_days, data.test_days, train.max_epochs,
  train.batch_size (positives over all devices), train.learning_rate, teacher.max_epochs,
  model.num_experts, model.rank, loss.distill_weight, eval.remove_seen
results: <workdir>/results.json, figures/, bundle/, checkpoints/, metrics.jsonl, tensorboard/,
  config.json
exit status: 0 done, 1 the loss diverged, 2 bad input, 130 stopped with its state saved
"""

# Commands that run a configuration, with the mode of each.
MODE_OF = {"train": "all", "prepare": "prepare", "evaluate": "evaluate"}
# Commands with flags of their own; only the one that is asked for is imported.
MODULE_OF = {"compare": "dsmoe_jax.compare.__main__", "plan": "dsmoe_jax.capacity.estimate"}
# Commands of two steps: `parse`, which imports nothing heavy, and `run`, which raises what a user
# can mend and stops at Ctrl-C.
PLAIN_MODULE_OF = {
    "export": "dsmoe_jax.run.export_command",
    "bundle": "dsmoe_jax.run.bundle_command",
    "demo": "dsmoe_jax.run.demo",
    "index": "dsmoe_jax.serving.index_command",
    "recommend": "dsmoe_jax.serving.recommend_command",
    "serve": "dsmoe_jax.serving.serve",
}
# The form of each flag that several processes need, and what a message calls it.
PROCESS_FLAGS = {
    "coordinator": (r".+:\d+", "host:port"),
    "num_processes": (r"0*[1-9]\d*", "an integer >= 1"),
    "process_id": (r"\d+", "an integer >= 0"),
}
# What `jax.distributed.initialize` reads inside `srun`. A batch script outside `srun` has some of
# them but not the step's: there the other tasks do not exist and waiting for them would hang.
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """A parsed command line.

    Attributes:
      overrides: The fields set on the command line, with their values.
      mode: One of `schema.MODES`.
      processes: `host:port` of process 0, their count and this one's id, where there are others.
      continue_from: Folder of the run to go on from, if any.
      anew: Whether a model trained anew is reported beside.
    """

    experiment: schema.Experiment
    overrides: dict[str, Any]
    workdir: pathlib.Path
    mode: str
    processes: tuple[str, int, int] | None
    continue_from: pathlib.Path | None = None
    anew: bool = False


def parse(argv: list[str], mode: str = "all") -> Options:
    """Parses a command line, program name first and no command; validates the configuration.

    Args:
      argv: The command line.
      mode: The mode where no flag names one.

    Raises:
      UsageError: In one line, with the nearest valid name where a name is wrong.
      ValueError: When a field's value is out of its range.
    """
    spec, arguments = _take_config(argv[1:])
    path, variant = load.split(spec)
    experiment = load.load_experiment(path, variant)
    overrides, flags = load.read_texts(experiment, arguments)
    given = {flag: flags[flag].value for flag in load.FLAGS if flags[flag].value is not None}
    mode = given.get("mode") or mode
    load.check_choice("--mode", mode, schema.MODES)
    processes = _processes(given)
    experiment.validate()
    run_name = pathlib.Path(path).stem + (f"-{variant.replace(',', '-')}" if variant else "")
    workdir = pathlib.Path(given.get("workdir") or f"runs/{run_name}").expanduser()
    earlier = given.get("continue_from")
    continue_from = pathlib.Path(earlier).expanduser() if earlier else None
    anew = bool(flags["anew"].value)
    return Options(experiment, overrides, workdir, mode, processes, continue_from, anew)


def _take_config(arguments: list[str]) -> tuple[str, list[str]]:
    """Separates `--config FILE[:variant]`, the last of them, from the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config", nargs="?", default="")
    found, rest = parser.parse_known_args(arguments)
    if found.config:
        return found.config, rest
    flags = [argument.partition("=")[0] for argument in rest if argument.startswith("--")]
    similar = difflib.get_close_matches("--config", flags, n=1, cutoff=0.8)
    if similar:
        raise load.UsageError(f"unknown flag {similar[0]!r}; nearest: '--config'")
    raise load.UsageError("expected --config FILE[:token,token], got none")


def main(argv: list[str]) -> int:
    """Runs a command line, program name first; see `exit_status` for what it returns."""
    command = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else ""
    if command in MODULE_OF:
        module = importlib.import_module(MODULE_OF[command])
        console.interrupt_at_signals(sigterm=False)
        return int(module.main(argv[2:]))
    if command in PLAIN_MODULE_OF:
        return run_plain(PLAIN_MODULE_OF[command], argv[2:])
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    # Before anything imports jax: XLA prints an error about pseudo features of the host for every
    # cached CPU program that it loads.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    show_traceback = "--traceback" in argv
    try:
        if command == "init":
            write_configuration(argv[2:])
            return 0
        if command and command not in MODE_OF:
            known = [*MODE_OF, "init", *MODULE_OF, *PLAIN_MODULE_OF]
            raise load.UsageError(f"unknown command {command!r}{load.nearest(command, known)}")
        arguments = [argv[0], *argv[2:]] if command else argv
        options = parse(arguments, MODE_OF.get(command, "all"))
    except (ValueError, OSError) as error:
        if show_traceback:
            traceback.print_exc()
        print(f"error: {load.one_line(error)} (--help shows examples)", file=sys.stderr)
        return 2
    is_connected = start_jax(options)
    from dsmoe_jax.run import run

    # Before the loop takes the signal over, being asked to end cleans up as Ctrl-C does. With
    # several processes the signal belongs to JAX's preemption service.
    console.interrupt_at_signals(sigterm=None if is_connected else True)

    def work() -> None:
        run.run(
            options.experiment,
            options.workdir,
            options.mode,
            overrides=options.overrides,
            handle_signals=True,
            continue_from=options.continue_from,
            anew=options.anew,
        )

    return exit_status(work, show_traceback=show_traceback)


def run_plain(module: str, arguments: list[str]) -> int:
    """Runs the command of a module; errors that a user can mend become one line.

    Returns:
      What the command returned, 0 if nothing; 2 on bad input, 130 when interrupted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]

    def work() -> int | None:
        command = importlib.import_module(module)
        options = command.parse(arguments)
        start_jax()
        console.interrupt_at_signals(sigterm=False)
        found: int | None = command.run(options)
        return found

    return console.exit_status(work, show_traceback=show_traceback)


def entry_point() -> None:
    """The console script."""
    console.end_at_signals()
    sys.exit(main(sys.argv))


def exit_status(work: Callable[[], int | None], *, show_traceback: bool = False) -> int:
    """Does the work of a command; errors that a user can mend become one line.

    Returns:
      What the work returned, 0 if nothing; 1 when the loss diverged, 2 on bad input, 130 when
      interrupted.
    """
    from dsmoe_jax.training import interrupt, loop

    try:
        return console.exit_status(work, show_traceback=show_traceback)
    except interrupt.InterruptedRunError as stop:
        print(stop, file=sys.stderr)
        return 130
    except loop.DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def write_configuration(arguments: list[str]) -> None:
    """Writes `NAME.py`, the packaged configuration `custom` under another name.

    Raises:
      UsageError: Without one name that can be a file's and a Python module's.
      ValueError: When the file is there.
    """
    name = arguments[0].removesuffix(".py") if len(arguments) == 1 else ""
    if not name.isidentifier():
        raise load.UsageError(f"init: expected one name like my_shop, got {' '.join(arguments)!r}")
    path = pathlib.Path(f"{name}.py")
    text = load.packaged()["custom"].read_text()
    text = text.replace("configs/custom.py", path.name).replace("my shop", name.replace("_", " "))
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path}: expected no such file; name another or remove it") from None
    print(
        f"wrote {path}: say in its data_config which column is what, then run\n"
        f"  dsmoe train --config {path} --config.data.raw_dir=FOLDER"
    )


def start_jax(options: Options | None = None) -> bool:
    """Sets memory and the compilation cache up and connects to the other processes, if any.

    Returns:
      Whether it connected.
    """
    # Before anything of JAX starts a thread.
    malloc.keep_freed()
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "dsmoe_jax" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Many short compilations take as long as a long one.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if options and options.processes:
        address, _, index = options.processes
        # All is given, so that neither SLURM's variables nor Kubernetes' API are asked.
        jax.distributed.initialize(
            *options.processes,
            cluster_detection_method="deactivate",
            coordinator_bind_address=None if index else bind_address(address),
        )
        return True
    in_slurm = all(variable in os.environ for variable in SLURM_VARIABLES)
    if in_slurm and int(os.environ["SLURM_NTASKS"]) > 1:
        jax.distributed.initialize()
        return True
    return False


def bind_address(coordinator: str) -> str | None:
    """Where process 0 listens: the address it was given, and no other that its host has.

    None, for all of them, where the given one is not this host's, as that of a service in front of
    it, or names the host by a loopback address, as /etc/hosts may, which no other host reaches.
    """
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address[0], 0))
    except OSError:
        return None
    number = str(address[0])
    is_loopback = number == "::1" or number.startswith("127.")
    if is_loopback and host not in ("localhost", number):
        return None
    return f"[{number}]:{port}" if family == socket.AF_INET6 else f"{number}:{port}"


def _processes(flags: dict[str, str]) -> tuple[str, int, int] | None:
    """Coordinator, process count and process id, from flags or else the environment."""
    origins, given = {}, {}
    for flag, (pattern, expected) in PROCESS_FLAGS.items():
        variable = f"DSMOE_{flag.upper()}"
        given[flag] = flags.get(flag, os.environ.get(variable, ""))
        origins[flag] = f"--{flag}" if flag in flags else variable
        if given[flag] and not re.fullmatch(pattern, given[flag]):
            raise load.UsageError(f"{origins[flag]}: expected {expected}, got {given[flag]!r}")
    if not any(given.values()):
        return None
    for flag in PROCESS_FLAGS:
        if not given[flag]:
            raise load.UsageError(
                f"--coordinator, --num_processes and --process_id belong together; --{flag} "
                f"(or DSMOE_{flag.upper()}) is missing"
            )
    count, index = int(given["num_processes"]), int(given["process_id"])
    if index >= count:
        raise load.UsageError(
            f"{origins['process_id']}: expected less than the {count} processes, got {index}"
        )
    return given["coordinator"], count, index


if __name__ == "__main__":
    entry_point()
