"""Python API: configure, prepare, train, evaluate and load, as `dsmoe_jax` offers them.

Owns what a caller's process sees of a run: no signal handler, no setting of JAX, nothing printed
unless `progress` asks for it.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.config import load as load_lib
from dsmoe_jax.data.prepare import custom, frames, later, own_log
from dsmoe_jax.evaluation import protocol
from dsmoe_jax.run import export, results, run, sizes, stages
from dsmoe_jax.run import workdir as workdir_lib
from dsmoe_jax.serving import bundle, retriever

Folder = str | os.PathLike[str]
# Fields on which the days held out depend.
_DECIDE_DAYS = {"data.repeats", "data.time_zone", "data.utc_offset_hours"}


class Model:
    """A trained student.

    Attributes:
      experiment: The run's configuration.
      workdir: The run's folder, which holds the model.
    """

    def __init__(
        self, experiment: schema.Experiment, workdir: pathlib.Path, *, is_temporary: bool = False
    ):
        """Opens nothing yet; a temporary folder goes with the model."""
        self.experiment, self.workdir = experiment, workdir
        if is_temporary:
            weakref.finalize(self, shutil.rmtree, workdir, ignore_errors=True)

    def __repr__(self) -> str:
        """Data set, variant and folder."""
        what = f"{self.experiment.dataset} {self.experiment.variant}".strip()
        return f"Model({what!r}, workdir={str(self.workdir)!r})"

    @property
    def results(self) -> dict[str, Any]:
        """The record of the run: `results.json`.

        Raises:
          ValueError: When the run was not evaluated.
        """
        path = self.workdir / results.FILE
        if not path.is_file():
            raise ValueError(
                f"{path}: expected the results of a run, found none; train with mode='evaluate'"
            )
        return results.read(path)

    def evaluate(
        self, log: frames.Frame | None = None, *, split: str = "test", progress: bool = False
    ) -> dict[str, Any]:
        """Full-corpus metrics per scenario and macro, with those of cold users apart.

        Args:
          log: Events that were not there when the model was trained, in the columns of its own log:
            the positives of its known users and items are what is to be found. None takes a split.
          split: "validation" or "test", of the model's own log.
          progress: Whether to show progress.

        Raises:
          ValueError: When there is nothing to find, or the model is not trained.
        """
        with runlog.quiet(not progress):
            found: dict[str, Any] = results.plain(self._evaluate(log, split).summarise())
        return found

    def _evaluate(self, log: frames.Frame | None, split: str) -> protocol.Evaluation:
        shared, frozen, section = self._stages, self._student.frozen, self.experiment.data
        if log is None:
            return shared.evaluate_matcher(frozen, split, shared.sample_queries(split, None))
        if not isinstance(section, custom.CustomConfig):
            raise ValueError(
                f"log: expected a model of own data, whose columns are known, got one of "
                f"{self.experiment.dataset}; evaluate with split= instead"
            )
        store = later.add_queries(shared.store, own_log.read_positives(log, section))
        evaluate = shared.make_matcher_evaluator(store)
        return evaluate(frozen, "later log", np.arange(len(store.queries(split).cold_Q)))

    def recommend(
        self, users: Any, scenario: str | Sequence[str] = "all", k: int = 50, **limits: Any
    ) -> Any:
        """The k best items of each user in each scenario; see `Retriever.recommend`.

        Raises:
          ValueError: When the model is not trained, or on what `Retriever.recommend` refuses.
        """
        return self.retriever.recommend(users, scenario, k, **limits)

    def save(self, folder: Folder | None = None, *, progress: bool = False) -> pathlib.Path:
        """Writes the serving bundle, which `load` opens without the run; returns its folder.

        Args:
          folder: Where; `bundle` in the run's folder by default.
          progress: Whether to show progress.

        Raises:
          ValueError: When the model is not trained, or the folder holds something else.
        """
        with runlog.quiet(not progress):
            return export.write(self._stages, pathlib.Path(folder).expanduser() if folder else None)

    @functools.cached_property
    def retriever(self) -> retriever.Retriever:
        """The model as a bundle in the run's folder serves it, which is written where it lacks."""
        folder = self.workdir / export.FOLDER
        if not export.is_current(self._stages, folder):
            self.save(folder)
        return retriever.Retriever.load(folder)

    @functools.cached_property
    def _stages(self) -> stages.Stages:
        return export.make_stages(self.experiment, self.workdir)

    @functools.cached_property
    def _student(self) -> stages.Trained:
        return self._stages.load_student()


def load_config(spec: str, **overrides: Any) -> schema.Experiment:
    """The validated experiment of a configuration.

    Args:
      spec: `NAME:token,token` of a packaged configuration, e.g. `kuairand:sample`, or
        `FILE:token,token`.
      **overrides: Fields, as `**{"train.learning_rate": 3e-4}` or `train={"learning_rate": 3e-4}`.

    Raises:
      ValueError: In one line, when a name, a type or a value is wrong.
    """
    return load_lib.load_config(spec, overrides)


def prepare(
    experiment: schema.Experiment, workdir: Folder, *, progress: bool = False
) -> pathlib.Path:
    """Prepares the data of a run, or finds them prepared; returns the folder of the store.

    Raises:
      ValueError: On bad data, naming file, row and column.
    """
    experiment.validate()
    with runlog.quiet(not progress):
        return run.prepare(run.resolve(experiment), pathlib.Path(workdir).expanduser())


def train(
    experiment: schema.Experiment,
    workdir: Folder | None = None,
    *,
    mode: str = "all",
    continue_from: Folder | None = None,
    anew: bool = False,
    progress: bool = False,
) -> Model:
    """Prepares, trains and evaluates; a second call with the same folder continues or reuses.

    Args:
      experiment: The configuration.
      workdir: The run's folder; None takes a temporary one, which lives as long as the model.
      mode: "all", or one part: "prepare", "teacher", "student", "evaluate" or "export".
      continue_from: Folder of a finished run to go on from, on a log that grew.
      anew: Whether to train a model anew as well, for the results.
      progress: Whether to show progress.

    Raises:
      ValueError: On a bad configuration or bad data, in one line.
      loop.DivergedError: When training diverges.
    """
    load_lib.check_choice("mode", mode, schema.MODES)
    experiment.validate()
    folder = pathlib.Path(workdir or tempfile.mkdtemp(prefix="dsmoe_jax_")).expanduser()
    model = Model(experiment, folder, is_temporary=workdir is None)
    with runlog.quiet(not progress):
        earlier = pathlib.Path(continue_from).expanduser() if continue_from else None
        model.experiment = run.run(experiment, folder, mode, continue_from=earlier, anew=anew)
    return model


def evaluate(
    model: Model | Folder,
    log: frames.Frame | None = None,
    *,
    split: str = "test",
    progress: bool = False,
) -> dict[str, Any]:
    """Metrics of a model or of the one in a folder; see `Model.evaluate`."""
    opened = model if isinstance(model, Model) else load_model(model)
    return opened.evaluate(log, split=split, progress=progress)


def load(
    folder: Folder, experiment: schema.Experiment | None = None
) -> Model | retriever.Retriever:
    """The retriever of a bundle, or the model of a run's folder.

    Args:
      folder: The bundle's folder or the run's.
      experiment: The run's configuration, where a class of it cannot be found again.

    Raises:
      ValueError: When the folder holds neither, or a bundle that is damaged.
    """
    path = pathlib.Path(folder).expanduser()
    if not (path / workdir_lib.CONFIG_FILE).is_file() and (path / bundle.FILE).is_file():
        return retriever.Retriever.load(path)
    return load_model(path, experiment)


def load_model(folder: Folder, experiment: schema.Experiment | None = None) -> Model:
    """The model of a run's folder; see `load`."""
    path = pathlib.Path(folder).expanduser()
    return Model(experiment or workdir_lib.read_config(path), path)


def fit(
    log: frames.Frame,
    *,
    users: frames.Frame | None = None,
    items: frames.Frame | None = None,
    user: str = "user_id",
    item: str = "item_id",
    time: str = "timestamp",
    scenario: str | None = None,
    positive: str | None = None,
    variant: str = "",
    workdir: Folder | None = None,
    progress: bool = False,
    **fields: Any,
) -> Model:
    """Trains on a log of one's own, with values that suit its size.

    Text and truth values become categories, numbers and dates dense features, lists bags; the last
    days of the log test and those before them validate. `progress` shows what was chosen.

    Args:
      log: One row per event: a polars or pandas frame, or a CSV or Parquet file.
      users: One row per user, with features.
      items: One row per item, with features; all of them are candidates.
      user: Column of the user's id, in the log and in `users`.
      item: Column of the item's id, in the log and in `items`.
      time: Column of the log: a date, ISO 8601 text or a number since 1970.
      scenario: Column of the log or of `users`; None where there is one scenario.
      positive: Which events are positives: `rating >= 4`, `event == click` or a column of truth
        values; None takes all.
      variant: Tokens of the packaged configuration `custom`, e.g. `mmoe` or `no_distill`.
      workdir: The run's folder; None takes a temporary one, which lives as long as the model.
      progress: Whether to show progress.
      **fields: Fields of the configuration, as in `load_config`.

    Raises:
      ValueError: In one line, when a column is missing, a cell is wrong or the log is too short.
      loop.DivergedError: When training diverges.
    """
    folder = pathlib.Path(workdir or tempfile.mkdtemp(prefix="dsmoe_jax_")).expanduser()
    roles = own_log.Roles(user, item, time, scenario, positive)
    with contextlib.ExitStack() as undo:
        if workdir is None:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        given = fingerprint.flatten(fields)
        experiment = load_lib.load_config(f"custom:{variant}")
        experiment.data = base = custom.CustomConfig()
        for name in _DECIDE_DAYS & given.keys():
            load_lib.override(experiment, name, given[name])
        with runlog.quiet(not progress):
            found = own_log.infer(folder / "raw", log, users, items, roles, base)
        experiment.data, experiment.dataset = found.data, found.data.name
        notes = list(found.notes)
        for name, value in given.items():
            load_lib.override(experiment, name, value)
        if experiment.by_size:
            experiment, chosen = sizes.fill(experiment, found.num_positives, found.num_items, given)
            notes += [sizes.describe(chosen, found.num_positives)]
        with runlog.quiet(not progress):
            for note in notes:
                runlog.say(note)
        model = train(experiment, folder, progress=progress)
        undo.pop_all()
    return Model(model.experiment, folder, is_temporary=workdir is None)
