"""Run report: the best states on all queries, beside the baselines, as files.

Owns what is evaluated last and written: results.json, arrays.npz and the figures.
"""

import time
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dsmoe_jax import runlog
from dsmoe_jax.baselines import builtin
from dsmoe_jax.config import fingerprint
from dsmoe_jax.evaluation import protocol
from dsmoe_jax.run import figures, results, stages
from dsmoe_jax.training import train_state

# The folder of a model trained anew beside a run that goes on from another.
ANEW = "anew"


def write(run: stages.Stages) -> None:
    """Evaluates the best states on all queries; writes results.json and the figures.

    Raises:
      ValueError: When a stage that the run has is not trained.
    """
    start_s = time.perf_counter()
    student = run.load_student()
    splits = {}
    for split in ("validation", "test"):
        splits[split] = run.evaluate_matcher(student.frozen, split, run.sample_queries(split, None))
        run.log.line(splits[split].describe())
    test, experiment, progress = splits["test"], run.experiment, student.progress
    teacher = run.load_teacher() if run.needs_teacher else None
    of_teacher = None
    if teacher is not None and experiment.eval.teacher_test_queries:
        of_teacher = _evaluate_teacher(run, teacher.frozen, splits)
    baselines = _evaluate_baselines(run, len(test.query_Q))
    summary = {
        **results.describe(
            run.store,
            test,
            variant=experiment.variant,
            seed=experiment.seed,
            config_hash=fingerprint.config_hash(experiment),
        ),
        **test.summarise(),
        "validation": splits["validation"].summarise(),
        "teacher": of_teacher,
        "references": baselines,
        **_describe_continuation(run),
        "params": runlog.count_parameters(student.frozen.params),
        "time_s": {
            "prepare": run.prepare_s,
            "teacher": teacher.progress.train_s if teacher else 0.0,
            "pretraining": sum(stage.progress.train_s for stage in run.load_pretrained()),
            "student": progress.train_s,
            "evaluate": time.perf_counter() - start_s,
        },
        "examples_per_s": progress.step
        * experiment.train.batch_size
        / max(progress.example_s, 1e-9),
    }
    if jax.process_index() == 0:
        views = _scenario_views(run.matcher, student.frozen)
        results.save_arrays(run.workdir / results.ARRAYS_FILE, test, views)
        results.save(run.workdir / results.FILE, summary)
        figures.draw_all(
            run.workdir / "figures",
            results=summary,
            metrics_path=run.workdir / runlog.METRICS_FILE,
            kept={
                trained.progress.stage: trained.progress.best_step
                for trained in (student, teacher)
                if trained is not None
            },
            fig4=views,
        )
    for line in results.table(summary):
        run.log.line(line)
    run.log.line(f"results: {run.workdir / results.FILE}")


def _describe_continuation(run: stages.Stages) -> dict[str, Any]:
    """What a run went on from, and recall of that model and of one trained anew on the same days.

    A model that is not there any more, or was not asked for, is null.
    """
    known = run.continued
    if known is None:
        return {}
    yesterday = anew = None
    if known.is_there():
        frozen = run.carry_over(run.student_stage())
        found = {
            split: run.evaluate_matcher(frozen, split, run.sample_queries(split, None))
            for split in ("validation", "test")
        }
        yesterday = {
            **found["test"].summarise(),
            "validation": found["validation"].summarise(),
        }
    else:
        run.log.line(f"{known.folder}: yesterday's model is not there any more, and is left out")
    path = run.workdir / ANEW / results.FILE
    if path.is_file():
        read = results.read(path)
        if read["data_hash"] == run.store.data_hash:
            anew = {name: read[name] for name in ("scenarios", "macro", "validation", "time_s")}
    described = {
        "from": str(known.folder),
        "checkpoint": known.checkpoint,
        "data_hash": known.data_hash,
    }
    return {"continued": {**described, "yesterday": yesterday, "anew": anew}}


def _evaluate_baselines(run: stages.Stages, queries: int) -> dict[str, Any]:
    """Summaries of the baselines by name; none where the configuration wants none.

    They may be asked fewer than the student's test `queries`.
    """
    if not run.experiment.eval.references:
        return {}
    found = builtin.evaluate_baselines(run.store, run.experiment.eval, seed=stages.QUERY_SEED)
    asked = len(found[0].test.query_Q)
    if asked < queries:
        run.log.line(f"baselines score every item: asked {asked:,} of {queries:,} test queries")
    return {baseline.name: baseline.summarise() for baseline in found}


def _evaluate_teacher(
    run: stages.Stages,
    frozen: train_state.Frozen,
    student: dict[str, protocol.Evaluation],
) -> dict[str, Any]:
    """The teacher's summary on sampled queries, with its difference from the student on them."""
    chosen, found = run.experiment.eval, {}
    for split in student:
        limit = getattr(chosen, f"teacher_{split}_queries")
        found[split] = run.evaluate_ranker(frozen, split, run.sample_queries(split, limit))
    summary = {
        **found["test"].summarise(),
        "validation": found["validation"].summarise(),
        "params": runlog.count_parameters(frozen.params),
    }
    k = chosen.k[0]
    for split, evaluation in found.items():
        shared = student[split].restrict(evaluation.query_Q)
        difference = protocol.compare(evaluation, shared, k)
        holder = summary if split == "test" else summary["validation"]
        rows = {name: interval._asdict() for name, interval in difference.items()}
        holder[f"minus_student_recall@{k}"] = rows
        intervals = "  ".join(f"{name} {row.points}" for name, row in difference.items())
        run.log.line(
            f"{split}: teacher minus student, recall@{k} in points with 95 % intervals, on "
            f"{len(evaluation.query_Q):,} queries: {intervals}"
        )
    return summary


def _scenario_views(
    matcher: nn.Module, frozen: train_state.Frozen
) -> dict[str, dict[str, np.ndarray]]:
    """The tables of the paper's Fig. 4, of a model that has them."""
    return {
        name: jax.device_get(matcher.apply(frozen.variables, method=name))
        for name in ("scenario_coefficients", "gate_weights")
        if hasattr(matcher, name)
    }
