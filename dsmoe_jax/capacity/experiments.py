"""The configurations that measurements run on.

Owns naming one as `FILE[:variant]` and preparing its data into a folder.
"""

import argparse
import pathlib

from dsmoe_jax.config import load as overrides
from dsmoe_jax.config import schema

DEFAULT = "configs/kuairand.py:sample"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`."""
    parser.add_argument("--config", default=DEFAULT, help=f"FILE[:variant], {DEFAULT} if none")


def load(name: str) -> schema.Experiment:
    """The experiment of `FILE[:variant]`; see `config.load.load_config`."""
    return overrides.load_config(name)


def prepare(experiment: schema.Experiment, folder: pathlib.Path) -> pathlib.Path:
    """Prepares the data into the configuration's store, or one in `folder`; returns the store."""
    store_dir = experiment.data.store_dir or str(folder / "store")
    experiment.data.store_dir = store_dir
    experiment.data.prepare(store_dir)
    return pathlib.Path(store_dir)
