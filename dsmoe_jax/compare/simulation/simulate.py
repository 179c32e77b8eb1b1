"""Planted worlds: what SAP, a teacher and distillation earn where the true scores are known.

Owns the work list of one cell per world, seed and arm, and the small record that each finished cell
leaves. A cell whose record is current is reused; a killed list continues inside the cell where it
stopped, since training resumes. Which arms there are is in `compare/simulation/designs.py`, the
text made from the records in `compare/simulation/page_section.py`, the worlds' sizes in
`configs/planted.py`.

Every seed has a world of its own. Seed 0 is left for trying things out.

    Q  queries     V  rows of the corpus (row 0 is padding)
"""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import tqdm

from dsmoe_jax import main, runlog
from dsmoe_jax.compare import numerics
from dsmoe_jax.compare.simulation import designs
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.synthetic import world as synthetic_world
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.models import registry
from dsmoe_jax.run import results, stages
from dsmoe_jax.training import interrupt

CONFIG = "planted"


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a cell found; parameters and epochs of trained systems only."""

    test: protocol.Evaluation
    params: dict[str, int] | None = None
    epochs: int | None = None
    validation: float | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a cell works."""

    workdir: pathlib.Path
    store_dir: pathlib.Path
    stop: interrupt.StopRequest


def run_all(
    folder: pathlib.Path,
    seeds: int,
    published: pathlib.Path,
    *,
    worlds: tuple[designs.World, ...] = designs.WORLDS,
    arguments: tuple[str, ...] = (),
) -> None:
    """Runs every cell whose record is missing or was made by another configuration.

    Args:
      folder: Where worlds and checkpoints are.
      seeds: Seeds 1 to `seeds` are run.
      published: Folder of the finished cells' records.
      worlds: The worlds.
      arguments: Further `--config.FIELD=VALUE`, for smaller trials.

    Raises:
      ValueError: When a cell's configuration or data are refused.
      stop_lib.InterruptedRunError: When asked to stop; what was done stays.
      train.DivergedError: When a cell's training diverges.
    """
    published.mkdir(parents=True, exist_ok=True)
    cells = [(w, seed, arm) for seed in range(1, seeds + 1) for w in worlds for arm in w.arms]
    with interrupt.StopRequest() as stop:
        for world, seed, arm in tqdm.tqdm(cells, desc="cells", unit="cell", disable=None):
            if stop.reached(0):
                raise interrupt.InterruptedRunError(
                    "stopped between cells; the same command continues"
                )
            experiment = make_experiment(world, arm, seed, arguments)
            path = record_path(published, world, arm, seed)
            if path.exists() and is_current(json.loads(path.read_text()), experiment, arm):
                continue
            start_s = time.perf_counter()
            home = folder / f"{world.name}-seed{seed}"
            place = Place(home / (arm.tokens or "whole"), home / "store", stop)
            record = run_cell(world, arm, experiment, place)
            results.save(path, record)
            metric, macro = next(iter(record["macro"].items()))
            tqdm.tqdm.write(
                f"{path.stem}: test {metric} {100 * macro:.1f} %, "
                f"{time.perf_counter() - start_s:.0f} s"
            )


def make_experiment(
    world: designs.World, arm: designs.Arm, seed: int, arguments: tuple[str, ...] = ()
) -> schema.Experiment:
    """The validated configuration of a cell."""
    tokens = f",{arm.tokens}" if arm.tokens else ""
    seeds = (f"--config.seed={seed}", f"--config.data.generator_seed={seed}")
    command = [f"--config={CONFIG}:{world.name}{tokens}", *seeds, *arguments]
    experiment = main.parse(["dsmoe_jax", *command]).experiment
    experiment.validate()
    return experiment


def record_path(
    published: pathlib.Path, world: designs.World, arm: designs.Arm, seed: int
) -> pathlib.Path:
    """Where a cell's record is."""
    return published / f"{world.name}-{arm.name}-seed{seed}.json"


def is_current(record: dict[str, Any], experiment: schema.Experiment, arm: designs.Arm) -> bool:
    """Whether a record was made by this configuration and these versions of components."""
    same = record["config_hash"] == fingerprint.config_hash(experiment)
    return same and record.get("numerics") == components(experiment, arm)


def components(experiment: schema.Experiment, arm: designs.Arm) -> dict[str, int]:
    """Versions of the components that decide an arm's numbers."""
    if arm.kind in ("truth", "truncated"):
        return numerics.of(["data", "evaluation"])
    teacher = arm.kind == "teacher" or experiment.loss.distill_weight > 0
    found = registry.components(experiment, student=arm.kind == "student", teacher=teacher)
    return numerics.of(found)


def run_cell(
    world: designs.World,
    arm: designs.Arm,
    experiment: schema.Experiment,
    place: Place,
) -> dict[str, Any]:
    """Runs one cell and returns its record; what it says goes to the workdir's log.txt."""
    place.workdir.mkdir(parents=True, exist_ok=True)
    with (place.workdir / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        experiment.data.prepare(str(place.store_dir))
        store = store_lib.Store.open(place.store_dir)
        outcome = _KINDS[arm.kind](experiment, store, place)
    summary = outcome.test.summarise()
    kept = ("share", "queries", *(f"recall@{k}" for k in experiment.eval.k))
    fields = fingerprint.as_dict(experiment)
    return {
        "world": world.name,
        "arm": arm.name,
        "seed": experiment.seed,
        "config_hash": fingerprint.config_hash(experiment),
        "data_hash": store.data_hash,
        "numerics": components(experiment, arm),
        "data": {name: fields["data"][name] for name in _world_data(experiment).settings()},
        "model": fields["model"],
        "versions": results.versions(),
        "device": results.describe_devices(),
        "date": datetime.date.today().isoformat(),
        "candidates": outcome.test.num_candidates,
        "seen_items_removed": outcome.test.seen_removed,
        "k": list(experiment.eval.k),
        "scenarios": {
            name: {key: row[key] for key in kept} for name, row in summary["scenarios"].items()
        },
        "macro": {key: summary["macro"][key] for key in kept[2:]},
        "validation": outcome.validation,
        "params": outcome.params,
        "epochs": outcome.epochs,
    }


def _train_student(experiment: schema.Experiment, store: store_lib.Store, place: Place) -> _Outcome:
    with _open_session(experiment, place) as session:
        if session.needs_teacher:
            session.train_teacher()
        trained = session.train_student()
        return _judge_trained(trained, session.evaluate_matcher, store)


def _train_teacher(experiment: schema.Experiment, store: store_lib.Store, place: Place) -> _Outcome:
    with _open_session(experiment, place) as session:
        trained = session.train_teacher()
        return _judge_trained(trained, session.evaluate_ranker, store)


@contextlib.contextmanager
def _open_session(experiment: schema.Experiment, place: Place) -> Iterator[stages.Session]:
    reporter = runlog.Reporter(place.workdir, is_main=True)
    try:
        yield stages.Session(
            experiment, place.workdir, place.store_dir, reporter, place.stop, prepare_s=0.0
        )
    finally:
        reporter.close()


def _judge_trained(
    trained: stages.Trained,
    evaluator: Callable[..., protocol.Evaluation],
    store: store_lib.Store,
) -> _Outcome:
    return _Outcome(
        test=evaluator(trained.frozen, "test", _all_queries(store)),
        params=runlog.count_parameters(trained.frozen.params),
        epochs=trained.progress.epochs_evaluated,
        validation=trained.progress.best_score,
    )


def _judge_truth(experiment: schema.Experiment, store: store_lib.Store, place: Place) -> _Outcome:
    truth, rows_QC = _true_scores(experiment, store, place)
    return _judge_scores(experiment, store, lambda ids: truth.scores(rows_QC[ids]))


def _judge_truncated(
    experiment: schema.Experiment, store: store_lib.Store, place: Place
) -> _Outcome:
    truth, rows_QC = _true_scores(experiment, store, place)
    score_QV = truth.scores(rows_QC)
    scenario_Q = rows_QC[:, store.columns["scenario"]]
    rank = fingerprint.as_dict(experiment)["model"]["output_dim"]
    score_QV[:, 1:] = synthetic_world.truncate(score_QV[:, 1:], scenario_Q, rank)
    return _judge_scores(experiment, store, lambda ids: score_QV[ids])


def _true_scores(
    experiment: schema.Experiment, store: store_lib.Store, place: Place
) -> tuple[synthetic_world.TrueScores, np.ndarray]:
    """The true scores, and the rows of all test queries."""
    folder = _world_data(experiment).folder(str(place.store_dir))
    return synthetic_world.TrueScores(folder, store), np.asarray(store.queries("test").rows_QC)


def _world_data(experiment: schema.Experiment) -> synthetic_world.SyntheticWorldConfig:
    return cast(synthetic_world.SyntheticWorldConfig, experiment.data)


def _judge_scores(
    experiment: schema.Experiment, store: store_lib.Store, scores: evaluators.Scores
) -> _Outcome:
    return _Outcome(
        evaluators.evaluate_scores(store, experiment.eval, "test", _all_queries(store), scores)
    )


def _all_queries(store: store_lib.Store) -> np.ndarray:
    return protocol.sample_queries(store, "test", None, stages.QUERY_SEED)


_KINDS: dict[str, Callable[..., _Outcome]] = {
    "student": _train_student,
    "teacher": _train_teacher,
    "truth": _judge_truth,
    "truncated": _judge_truncated,
}
