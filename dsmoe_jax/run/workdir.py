"""A run's folder: where its prepared data lie, and the configuration that it keeps.

store/  config.json  checkpoints/<stage>/  metrics.jsonl  tensorboard/
results.json  arrays.npz  figures/  bundle/
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint, restore, schema

CONFIG_FILE = "config.json"


def store_folder(experiment: schema.Experiment, workdir: pathlib.Path) -> pathlib.Path:
    """Where the prepared data of a run lie."""
    return pathlib.Path(experiment.data.store_dir or workdir / "store").expanduser()


def write_config(
    experiment: schema.Experiment, workdir: pathlib.Path, overrides: Mapping[str, Any]
) -> None:
    """Keeps a run's configuration, and which fields differ from its file."""
    record = {
        "overrides": dict(overrides),
        "config": fingerprint.as_dict(experiment),
        "classes": restore.class_names(experiment),
    }
    runlog.replace_text(workdir / CONFIG_FILE, json.dumps(record, indent=1) + "\n")


def read_config(workdir: pathlib.Path) -> schema.Experiment:
    """The configuration that a run keeps.

    Raises:
      ValueError: When the folder holds no run.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{path}: expected the configuration of a run, found none; train one")
    record = json.loads(path.read_text())
    return restore.restore(record["config"], record["classes"])
