"""The command line: flags, the configuration file, the processes of a run, one call.

Heavy imports happen after the flags are known to be right: `--help` and a misspelt flag answer at
once.
"""

import dataclasses
import difflib
import os
import pathlib
import re
import sys
import traceback
from typing import Any

HELP = """\
dsmoe_jax: train, distil, evaluate and serve multi-scenario matching models.

usage: python -m dsmoe_jax.main --config FILE[:token,token] [--workdir DIR] [--mode MODE]
                                [--config.FIELD=VALUE ...]

  --config FILE[:tokens]  a configuration file and its variant; tokens in any order, one per axis
  --workdir DIR           where everything is written (default runs/<file>-<tokens>); the same
                          command with the same folder resumes
  --mode MODE             all (default), prepare, teacher, student or evaluate; each continues from
                          what the earlier ones left
  --config.FIELD=VALUE    overrides one field, e.g. --config.train.learning_rate=3e-4
  --coordinator HOST:PORT, --num_processes N, --process_id I
                          several processes or hosts (also from DSMOE_COORDINATOR,
                          DSMOE_NUM_PROCESSES, DSMOE_PROCESS_ID; SLURM is detected)
  --traceback             show where an error came from

examples:
  # the packaged real rows: prepare, teach, distil, evaluate
  python -m dsmoe_jax.main --config configs/kuairand.py:sample
  # an ablation, another seed, a folder of its own
  python -m dsmoe_jax.main --config configs/kuairand.py:sample,no_sap --config.seed=1 \\
      --workdir runs/no_sap-1
  # the full official archive
  python -m dsmoe_jax.main --config configs/kuairand.py --config.data.raw_dir=~/KuaiRand-Pure/data
  # synthetic rows in Alimama's official format
  python -m dsmoe_jax.main --config configs/alimama.py:synthetic
  # evaluate again with seen items kept
  python -m dsmoe_jax.main --config configs/kuairand.py:sample --mode evaluate \\
      --config.eval.remove_seen=False

fields worth knowing: seed, data.raw_dir, data.validation_days, data.test_days, train.max_epochs,
  train.batch_size (positives over all devices), train.learning_rate, teacher.max_epochs,
  model.num_experts, model.rank, loss.distill_weight, eval.remove_seen
results: <workdir>/results.json, figures/, checkpoints/, metrics.jsonl, tensorboard/, config.json
"""

MODES = ("all", "prepare", "teacher", "student", "evaluate")
FLAGS = ("config", "workdir", "mode", "coordinator", "num_processes", "process_id", "traceback")


class UsageError(Exception):
    """The command line is wrong; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Options:
    """A parsed command line.

    Attributes:
      experiment: The resolved configuration.
      overrides: The fields set on the command line, with their values.
      workdir: The run's folder.
      mode: One of `MODES`.
      coordinator: `host:port` of process 0, or None.
      num_processes: Processes of the run, or None.
      process_id: This process, or None.
    """

    experiment: Any
    overrides: dict[str, Any]
    workdir: pathlib.Path
    mode: str
    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def parse(argv: list[str]) -> Options:
    """Parses a command line, program name first.

    Raises:
      UsageError: In one line, with the nearest valid name where a name is wrong.
    """
    from absl import flags
    from ml_collections import config_flags

    for argument in argv[1:]:
        name = re.match(r"--?(?:no)?([^=.]+)", argument)
        if name and argument.startswith("-") and name[1] not in FLAGS:
            raise UsageError(f"unknown flag {argument.split('=')[0]!r}{_nearest(name[1], FLAGS)}")
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_enum("mode", "all", MODES, "", flag_values=values)
    flags.DEFINE_string("coordinator", os.environ.get("DSMOE_COORDINATOR"), "", flag_values=values)
    for name, variable in (
        ("num_processes", "DSMOE_NUM_PROCESSES"),
        ("process_id", "DSMOE_PROCESS_ID"),
    ):
        flags.DEFINE_integer(name, os.environ.get(variable), "", flag_values=values)
    flags.DEFINE_boolean("traceback", False, "", flag_values=values)
    path, variant = _config_argument(argv)
    if not pathlib.Path(path).is_file():
        raise UsageError(f"--config: no such file {path!r}{_nearest(path, _config_files(path))}")
    try:
        _check_fields(argv, f"{path}:{variant}" if variant else path)
        rest = values(argv)
    except UsageError:
        raise
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(_one_line(error)) from error
    if rest[1:]:
        raise UsageError(f"expected flags only, got {rest[1]!r}; flags start with --")
    name = pathlib.Path(path).stem + (f"-{variant.replace(',', '-')}" if variant else "")
    workdir = pathlib.Path(values.workdir or f"runs/{name}").expanduser()
    return Options(
        experiment=holder.value,
        overrides=config_flags.get_override_values(values["config"]),
        workdir=workdir,
        mode=values.mode,
        coordinator=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit status."""
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    show_traceback = "--traceback" in argv
    try:
        options = parse(argv)
        options.experiment.validate()
    except (UsageError, ValueError) as error:
        if show_traceback:
            traceback.print_exc()
        print(f"error: {_one_line(error)} (--help shows examples)", file=sys.stderr)
        return 2
    return _run(options, show_traceback)


def entry_point() -> None:
    """The console script."""
    sys.exit(main(sys.argv))


def _run(options: Options, show_traceback: bool) -> int:
    _start_jax(options)
    from dsmoe_jax import run, train

    try:
        run.run(options.experiment, options.overrides, options.workdir, options.mode)
    except train.InterruptedRunError as stop:
        print(stop, file=sys.stderr)
        return 130
    except train.DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was saved before stays", file=sys.stderr)
        return 130
    except ValueError as error:
        # One line is a message for the user; more lines come from a library and need their trace.
        if show_traceback or "\n" in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _start_jax(options: Options) -> None:
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache is None:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "dsmoe_jax" / "xla"))
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    if options.coordinator or options.num_processes:
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    elif slurm:
        jax.distributed.initialize()


def _config_argument(argv: list[str]) -> tuple[str, str]:
    for i, argument in enumerate(argv):
        if argument in ("--config", "-config") and i + 1 < len(argv):
            text = argv[i + 1]
            break
        if argument.startswith(("--config=", "-config=")):
            text = argument.split("=", 1)[1]
            break
    else:
        raise UsageError("expected --config FILE[:token,token], got none")
    path, _, variant = text.partition(":")
    return path, variant


def _check_fields(argv: list[str], config: str) -> None:
    """Refuses an override of a field that the configuration does not have."""
    from absl import flags
    from ml_collections import config_flags

    from dsmoe_jax import config as config_lib

    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    values([argv[0], f"--config={config}"])
    tree = config_lib.as_dict(holder.value)
    fields = [name for name in config_lib.flatten(tree) if not name.endswith("class")]
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in fields:
            raise UsageError(f"unknown field 'config.{match[1]}'{_nearest(match[1], fields)}")


def _config_files(path: str) -> list[str]:
    folder = pathlib.Path(path).parent
    return [str(entry) for entry in folder.glob("*.py")] if folder.is_dir() else []


def _nearest(name: str, known: Any) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; nearest: {match[0]!r}" if match else ""


def _one_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split())


if __name__ == "__main__":
    entry_point()
