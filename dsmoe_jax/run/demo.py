"""Demonstration, `dsmoe demo`: from the packaged rows to a page with lists, in one command.

Owns the order: train, export, index, serve. Each step finds what an earlier call left.
"""

import argparse
import pathlib

from dsmoe_jax import optional
from dsmoe_jax.serving import serve

CONFIG = "kuairand:sample,plus"
_HOST = "127.0.0.1"  # where the service listens when nobody says


def make_bundle(workdir: pathlib.Path, **fields: object) -> pathlib.Path:
    """Trains on the packaged rows, unless that was done before; returns the indexed bundle.

    Args:
      workdir: The run's folder.
      **fields: Fields of the configuration.
    """
    # Here, since `--help` needs none of it.
    from dsmoe_jax import runlog
    from dsmoe_jax.config import fingerprint, load
    from dsmoe_jax.run import export
    from dsmoe_jax.run import run as whole_run
    from dsmoe_jax.serving import bundle, indexing

    # Without the baselines, whose settings are searched.
    experiment = load.load_config(CONFIG, {"eval.references": False, **fields})
    folder = workdir / export.FOLDER
    wanted = fingerprint.config_hash(experiment)
    if not bundle.exists(folder) or bundle.read_manifest(folder)["config_hash"] != wanted:
        runlog.say(f"training on the packaged rows, {CONFIG}: about three minutes on two cores")
        whole_run.run(experiment, workdir, "all", handle_signals=True)
    # An export writes none: what is there is of these vectors.
    if "indexes" not in bundle.read_manifest(folder):
        indexing.make_index(folder, min_recall=0.99)
    return folder


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="dsmoe demo",
        description="Trains on the packaged rows, exports, indexes and serves: open the address "
        "that it prints, pick a user, and see lists for every scenario side by side. A second call "
        "serves at once.",
        epilog="example: dsmoe demo --port 8080",
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        default=pathlib.Path("runs/demo"),
        help="folder of the run (runs/demo)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port of the service, on this machine alone (8000)"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
      ValueError: When a library of the service is missing, the port is taken, or the folder holds
        another run.
    """
    optional.require(*serve.LIBRARIES, extra="serve")
    # Before minutes of training; it is asked for again when it is needed.
    with serve.listen(_HOST, options.port):
        pass
    folder = make_bundle(options.workdir.expanduser())
    return serve.main([str(folder), "--port", str(options.port)])
