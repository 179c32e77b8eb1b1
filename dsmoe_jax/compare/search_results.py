"""What a search of hyper-parameters found, as a table, a figure and the best setting."""

import csv
import io
import json
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dsmoe_jax import runlog
from dsmoe_jax.compare import search_space
from dsmoe_jax.compare.report import sweeps

if TYPE_CHECKING:
    import optuna

_HEADS = ("trial", "end", "score", "epochs", "seconds")


def write(
    folder: pathlib.Path,
    trials: Iterable["optuna.trial.FrozenTrial"],
    space: search_space.Space,
    *,
    config: str,
    score_name: str,
) -> pathlib.Path:
    """Writes trials.csv, trials.png, trials.svg and best.json.

    Args:
      folder: Of the study.
      trials: Those that came to an end say so in their attribute `end`; of a setting that was
        tried again after the search had been killed, the last one counts.
      space: The fields that were searched.
      config: `FILE:variant` of the search.
      score_name: Of the validation score.

    Returns:
      The file of the best setting among the trials that ran to their end.

    Raises:
      ValueError: When none did.
    """
    ended = {str(t.params): _as_row(t, space) for t in trials if "end" in t.user_attrs}
    rows = list(ended.values())
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_HEADS, *space], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    runlog.replace_text(folder / "trials.csv", text.getvalue())
    scored = [row for row in rows if row["score"] is not None]
    title = f"validation {score_name} of {config}"
    sweeps.draw_search(folder / "trials", list(space), scored, title)
    done = [row for row in scored if row["end"] == "done"]
    if not done:
        raise ValueError(f"{folder}: every trial diverged; trials.csv has their settings")
    best = max(done, key=lambda row: row["score"])
    setting = {field: best[field] for field in space}
    found = {
        "config": config,
        "score": {f"validation {score_name}": best["score"]},
        "trials": len(rows),
        "setting": setting,
        "flags": list(search_space.as_flags(setting)),
    }
    path = folder / "best.json"
    runlog.replace_text(path, json.dumps(found, indent=1) + "\n")
    return path


def _as_row(trial: "optuna.trial.FrozenTrial", space: search_space.Space) -> dict[str, Any]:
    scores = trial.intermediate_values
    return {
        "trial": trial.number,
        "end": trial.user_attrs["end"],
        "score": max(scores.values(), default=None),
        "epochs": len(scores),
        "seconds": trial.user_attrs["seconds"],
        **{field: trial.params[field] for field in space},
    }
