"""Export of a run: the best student of a workdir as a serving bundle.

Owns what a bundle says of its run. The bundle itself is `serving/export.py`'s.
"""

import pathlib
from typing import Any

import jax

from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.run import results, stages
from dsmoe_jax.run import workdir as workdir_lib
from dsmoe_jax.serving import bundle, export
from dsmoe_jax.training import interrupt

FOLDER = "bundle"
# What of `results.json` a bundle repeats.
_KEPT = ("scenarios", "macro", "validation", "split", "k", "date", "device")


def write(run: stages.Stages, folder: pathlib.Path | None = None) -> pathlib.Path:
    """Exports the best student; returns the bundle's folder.

    Args:
      run: The run.
      folder: Where; `bundle` in the run's folder by default.

    Raises:
      ValueError: When the student is not trained, or the folder holds something else.
    """
    folder = folder or run.workdir / FOLDER
    trained = run.load_student()
    cost = export.write_bundle(
        folder,
        run.store,
        run.matcher,
        trained.frozen,
        run={**_identity(run, trained), "results": _read_results(run.workdir)},
    )
    how = (
        f"{cost.exported:,.0f} folded"
        if export.folds(run.matcher)
        else "not folded, a compiled program"
    )
    if jax.process_index() == 0:
        runlog.say(f"bundle: {folder}; user tower {cost.model:,.0f} operations a query, {how}")
    return folder


def is_current(run: stages.Stages, folder: pathlib.Path) -> bool:
    """Whether a folder holds the bundle of the run's best student, as it is now."""
    if not bundle.exists(folder):
        return False
    manifest = bundle.read_manifest(folder)
    wanted = {**_identity(run, run.load_student()), "data_hash": run.store.data_hash}
    return all(manifest.get(name) == value for name, value in wanted.items())


def open_stages(workdir: pathlib.Path) -> stages.Stages:
    """The stages of a run that was made before, to look at what is trained.

    Raises:
      ValueError: When the folder holds no run.
    """
    workdir = workdir.expanduser()
    return make_stages(workdir_lib.read_config(workdir), workdir)


def make_stages(experiment: schema.Experiment, workdir: pathlib.Path) -> stages.Stages:
    """The stages of a run, of which no second log is written."""
    return stages.Stages(
        experiment,
        workdir,
        workdir_lib.find_store(experiment, workdir),
        runlog.RunLog(workdir, is_main=False),
        interrupt.Interrupt(handle_signals=False),
        prepare_s=0.0,
    )


def _identity(run: stages.Stages, trained: stages.Trained) -> dict[str, Any]:
    experiment = run.experiment
    return {
        "variant": experiment.variant,
        "config_hash": fingerprint.config_hash(experiment),
        "step": trained.progress.best_step,
        "remove_seen": experiment.eval.remove_seen,
    }


def _read_results(workdir: pathlib.Path) -> dict[str, Any]:
    """What was measured, or nothing where the run was not evaluated."""
    path = workdir / results.FILE
    if not path.is_file():
        return {}
    found = results.read(path)
    return {name: found[name] for name in _KEPT}
