"""Sizes of a run by the size of its data: batches, step size, epochs and regularisation.

Owns the values. The defaults of fields are the paper's, for millions of examples: with a hundred
thousand they make too few and too small steps.
"""

import copy
import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax

from dsmoe_jax.config import load, schema

_LARGEST_BATCH = 4096  # Of examples.
_BATCH_SIZE = "train.batch_size"


def fill(
    experiment: schema.Experiment, positives: int, items: int, given: Collection[str] = ()
) -> tuple[schema.Experiment, dict[str, Any]]:
    """A copy with values that suit the data in the fields that nobody set.

    Args:
      experiment: The configuration.
      positives: Of the log, in all its splits.
      items: Candidates.
      given: Names of fields that somebody did set, though perhaps to their default.

    Returns:
      The copy, whose `by_size` is off, and the fields with their new values.
    """
    filled, suited = copy.deepcopy(experiment), _suited(positives, items)
    # Far more rows leave some of the fields as they are.
    values = {name: suited[name] for name in unset(experiment, given) if name in suited}
    if _BATCH_SIZE in values and "batch_size" in experiment.model.recipe:
        # A method's own batches may be of users, of whom there are fewer than rows.
        values[_BATCH_SIZE] = min(experiment.train.batch_size, suited[_BATCH_SIZE])
    for name, value in values.items():
        load.override(filled, name, value)
    filled.by_size = False
    return filled, values


def unset(experiment: schema.Experiment, given: Collection[str] = ()) -> list[str]:
    """Names of the fields that `fill` gives a value: those that hold their default.

    A method keeps what it asks for itself, but larger batches than suit the data, and lacks some of
    the fields that suit others.
    """
    return [name for name in _suited(1, 1) if name not in given and _is_unset(experiment, name)]


def describe(values: dict[str, Any], positives: int) -> str:
    """What was chosen, as one line."""
    named = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"by_size, for {positives:,} positives: {named or 'nothing, all fields are set'}"


def _is_unset(experiment: schema.Experiment, name: str) -> bool:
    """Whether a field is there and holds its default, of batches the method's own."""
    *parents, last = name.split(".")
    section: Any = functools.reduce(getattr, parents, experiment)
    usual = {own.name: own.default for own in dataclasses.fields(section)}
    if parents == ["train"] and last in (recipe := experiment.model.recipe):
        usual = {last: recipe[last]} if name == _BATCH_SIZE else {}
    return last in usual and getattr(section, last) == usual[last]


def _suited(positives: int, items: int) -> dict[str, Any]:
    # Some two hundred steps an epoch, and a multiple of the devices.
    size = min(_LARGEST_BATCH, max(32, 1 << (positives // 200).bit_length()))
    values: dict[str, Any] = {
        _BATCH_SIZE: -(-size // jax.device_count()) * jax.device_count(),
        "train.learning_rate": 1e-3,
        "train.max_epochs": 50 if positives < 10**6 else 20 if positives < 10**7 else 5,
        "eval.k": (50, 100) if items >= 1000 else (10, 50),
    }
    if positives < 10**6:
        # Few rows: the user id and wide layers over-fit, see `configs/kuairand.py`.
        values |= {
            "train.average_decay": 0.995 if positives > 20_000 else 0.9,
            "features.exclude": ("user_id",),
            "features.scenario_history_length": 20,
            "model.output_dim": 64,
            "model.input_dropout": 0.3,
            "teacher.model.input_dropout": 0.3,
            "teacher.patience": 3,
        }
    return values
