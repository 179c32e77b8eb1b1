"""The configurations that measurements run on.

Owns their flag, and preparing their data into a folder.
"""

import argparse
import pathlib

from dsmoe_jax.config import schema

DEFAULT = "kuairand:sample"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`."""
    parser.add_argument("--config", default=DEFAULT, help=f"FILE[:variant], {DEFAULT} if none")


def prepare(experiment: schema.Experiment, folder: pathlib.Path) -> pathlib.Path:
    """Prepares the data into the configuration's store, or one in `folder`; returns the store."""
    store_dir = experiment.data.store_dir or str(folder / "store")
    experiment.data.store_dir = store_dir
    experiment.data.prepare(store_dir)
    return pathlib.Path(store_dir)
