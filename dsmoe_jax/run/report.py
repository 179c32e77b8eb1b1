"""The end of a run: its best states on all queries, beside the reference rows, as files.

Owns what is evaluated last and written: results.json, arrays.npz and the figures.
"""

import time
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dsmoe_jax import runlog
from dsmoe_jax.baselines import builtin
from dsmoe_jax.evaluation import metrics, protocol
from dsmoe_jax.run import figures, results, stages
from dsmoe_jax.training import train_state


def write(session: stages.Session) -> None:
    """Evaluates the best states on all queries; writes results.json and the figures.

    Raises:
      ValueError: When a stage that the run has is not trained.
    """
    start_s = time.perf_counter()
    student = session.load_student()
    splits = {}
    for split in ("validation", "test"):
        splits[split] = session.evaluate_matcher(
            student.frozen, split, session.sample_queries(split, None)
        )
        session.reporter.line(splits[split].describe())
    teacher = session.load_teacher() if session.needs_teacher else None
    judged = None
    if teacher is not None and session.experiment.eval.teacher_test_queries:
        judged = _evaluate_teacher(session, teacher.frozen, splits)
    reference_rows = _evaluate_references(session, len(splits["test"].query_Q))
    progress = student.progress
    summary = results.make(
        experiment=session.experiment,
        store=session.store,
        test=splits["test"],
        validation=splits["validation"],
        teacher=judged,
        references=reference_rows,
        params=runlog.count_parameters(student.frozen.params),
        time_s={
            "prepare": session.prepare_s,
            "teacher": teacher.progress.train_s if teacher else 0.0,
            "pretraining": sum(stage.progress.train_s for stage in session.load_pretrained()),
            "student": progress.train_s,
            "evaluate": time.perf_counter() - start_s,
        },
        examples_per_s=progress.step
        * session.experiment.train.batch_size
        / max(progress.example_s, 1e-9),
    )
    if jax.process_index() == 0:
        views = _scenario_views(session.matcher, student.frozen)
        results.save_arrays(session.workdir / results.ARRAYS_FILE, splits["test"], views)
        results.save(session.workdir / results.FILE, summary)
        figures.draw_all(
            session.workdir / "figures",
            results=summary,
            metrics_path=session.workdir / "metrics.jsonl",
            fig4=views,
        )
    for line in results.table(summary):
        session.reporter.line(line)
    session.reporter.line(f"results: {session.workdir / results.FILE}")


def _evaluate_references(session: stages.Session, queries: int) -> dict[str, Any]:
    """Summaries of the reference rows by name; none where the configuration wants none.

    Args:
      session: The run.
      queries: Test queries that the student was asked.
    """
    if not session.experiment.eval.references:
        return {}
    found = builtin.evaluate_references(
        session.store, session.experiment.eval, seed=stages.QUERY_SEED
    )
    asked = len(found[0].test.query_Q)
    if asked < queries:
        session.reporter.line(
            f"reference rows score every item: asked {asked:,} of {queries:,} test queries"
        )
    return {
        row.name: {
            **row.test.summarise(),
            "validation": row.validation.summarise(),
            "settings": row.settings,
        }
        for row in found
    }


def _evaluate_teacher(
    session: stages.Session,
    frozen: train_state.Frozen,
    student: dict[str, protocol.Evaluation],
) -> dict[str, Any]:
    """The teacher's summary on sampled queries, with its difference from the student on them."""
    config_eval = session.experiment.eval
    limits = {
        "validation": config_eval.teacher_validation_queries,
        "test": config_eval.teacher_test_queries,
    }
    found = {
        split: session.evaluate_ranker(frozen, split, session.sample_queries(split, limit))
        for split, limit in limits.items()
    }
    summary = {
        **found["test"].summarise(),
        "validation": found["validation"].summarise(),
        "params": runlog.count_parameters(frozen.params),
    }
    k = config_eval.k[0]
    for split, evaluation in found.items():
        shared = student[split].restrict(evaluation.query_Q)
        difference = _as_rows(protocol.compare(evaluation, shared, k), session.spec.scenarios)
        holder = summary if split == "test" else summary["validation"]
        holder[f"minus_student_recall@{k}"] = difference
        cells = "  ".join(
            f"{name} {100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, "
            f"{100 * row['high']:+.1f}]"
            for name, row in difference.items()
        )
        session.reporter.line(f"{split}: teacher minus student, recall@{k} in %: {cells}")
    if summary["validation"][f"minus_student_recall@{k}"]["macro"]["difference"] <= 0:
        session.reporter.line(
            "the teacher is not better than the student on validation: it teaches nothing"
        )
    return summary


def _scenario_views(
    matcher: nn.Module, frozen: train_state.Frozen
) -> dict[str, dict[str, np.ndarray]]:
    """The tables of the paper's Fig. 4, of a model that has them."""
    variables = {"params": frozen.params, **frozen.model_state}
    return {
        name: jax.device_get(matcher.apply(variables, method=name))
        for name in ("scenario_coefficients", "gate_weights")
        if hasattr(matcher, name)
    }


def _as_rows(
    comparison: metrics.Comparison, scenarios: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Difference and 95 % interval per scenario and macro, as fractions."""
    columns = (comparison.difference_S, comparison.low_S, comparison.high_S)
    rows = {name: tuple(column[s] for column in columns) for s, name in enumerate(scenarios)}
    rows["macro"] = comparison.macro
    return {
        name: dict(zip(("difference", "low", "high"), map(float, row), strict=True))
        for name, row in rows.items()
    }
