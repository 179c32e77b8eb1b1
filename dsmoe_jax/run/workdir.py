"""A run's folder: where its prepared data lie, and the configuration that it keeps.

store/  store-<data hash>/  config.json  checkpoints/<stage>/  metrics.jsonl  tensorboard/
results.json  arrays.npz  figures/  bundle/  run.lock
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint, restore, schema
from dsmoe_jax.data import kept
from dsmoe_jax.training import checkpoint

CONFIG_FILE = "config.json"
# Where a configuration keeps a hash of the rest.
_OWN = "sha256"


@contextlib.contextmanager
def make(workdir: pathlib.Path) -> Iterator[None]:
    """Makes a run's folder; when the block raises, removes what was made, as far as it is empty."""
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as failed:
        failed.callback(_remove_empty, made)
        yield
        failed.pop_all()


def _remove_empty(folders: list[pathlib.Path]) -> None:
    """Removes folders, the innermost first, up to one that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def store_folder(experiment: schema.Experiment, workdir: pathlib.Path) -> pathlib.Path:
    """Where the prepared data of a run lie."""
    return pathlib.Path(experiment.data.store_dir or workdir / "store").expanduser()


def find_store(experiment: schema.Experiment, workdir: pathlib.Path) -> pathlib.Path:
    """Where the data lie that a run's student was trained on; the newest before it is trained.

    Raises:
      ValueError: When they are gone.
    """
    folder = store_folder(experiment, workdir)
    identity = checkpoint.read_identity(workdir, "student") or {}
    return kept.find(folder, identity["data_hash"]) if "data_hash" in identity else folder


def write_config(
    experiment: schema.Experiment, workdir: pathlib.Path, overrides: Mapping[str, Any]
) -> None:
    """Keeps a run's configuration, and which fields differ from its file."""
    record: dict[str, Any] = {
        "overrides": dict(overrides),
        "config": fingerprint.as_dict(experiment),
        "classes": restore.class_names(experiment),
    }
    record[_OWN] = fingerprint.of_record(record, _OWN)
    runlog.replace_text(workdir / CONFIG_FILE, json.dumps(record, indent=1) + "\n")


def read_config(workdir: pathlib.Path) -> schema.Experiment:
    """The configuration that a run keeps.

    Raises:
      ValueError: When the folder holds no run, or its configuration is damaged.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{path}: expected the configuration of a run, found none; train one")
    way_out = "run the training command again with the same --workdir, which writes it anew"
    record = read_record(path, way_out)
    # Configurations from before there was a hash lack it.
    if (found := fingerprint.of_record(record, _OWN)) != record.get(_OWN, found):
        raise ValueError(f"{path}: the file is damaged: expected another hash; {way_out}")
    try:
        return restore.restore(record["config"], record["classes"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the file is damaged: {error!r}; {way_out}") from error


def read_record(path: pathlib.Path, way_out: str) -> dict[str, Any]:
    """A JSON object of a run's folder.

    Raises:
      ValueError: When the file holds something else, with what to do.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: the file is damaged: expected JSON, got {error}; {way_out}"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: the file is damaged: expected a JSON object; {way_out}")
    return record
