"""What hyper-parameter search may choose: fields of a configuration and their values.

Owns the fields that methods share; one that a method lacks is left out. A method's own stand in its
file, as `MatcherConfig.search_space`.
"""

import math
from typing import Any

from dsmoe_jax import config, identity

# Choices of a field by its path.
Space = dict[str, tuple[Any, ...]]

_SHARED: Space = {
    "train.learning_rate": (3e-4, 1e-3, 3e-3),
    "train.weight_decay": (0.0, 1e-6, 1e-5),
    "model.input_dropout": (0.0, 0.1, 0.3, 0.5),
    "model.output_dim": (32, 64, 128),
}


def make(experiment: config.Experiment, fixed: tuple[str, ...] = ()) -> Space:
    """The fields that a search of this experiment tries, each with its own value first.

    Args:
      experiment: Its values are the first setting that is tried.
      fixed: Fields that keep their values.

    Raises:
      ValueError: When nothing is left to choose, or the method names a field that it lacks.
    """
    values = identity.flatten(identity.as_dict(experiment))
    own = {f"model.{name}": choices for name, choices in experiment.model.search_space.items()}
    for field in own:
        if field not in values:
            raise ValueError(
                f"{type(experiment.model).__name__}.search_space: expected names of its fields, "
                f"got {field.partition('.')[2]!r}"
            )
    space: Space = {}
    for field, choices in {**_SHARED, **own}.items():
        if field in fixed or field not in values:
            continue
        value = values[field]
        # JSON knows no tuples.
        value = tuple(value) if isinstance(value, list) else value
        space[field] = (value, *(choice for choice in choices if choice != value))
    if not space:
        raise ValueError("tune: expected at least one field to choose, got all of them fixed")
    return space


def count(space: Space) -> int:
    """Settings in the space."""
    return math.prod(len(choices) for choices in space.values())


def as_flags(setting: dict[str, Any]) -> tuple[str, ...]:
    """The flags of a setting: values by field."""
    return tuple(f"--config.{field}={as_text(value)}" for field, value in setting.items())


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)
