"""Search space of hyper-parameters: fields of a configuration and the values to choose from.

Owns the fields that methods share; one that a method lacks is left out. A method's own stand in its
file, as `MatcherConfig.search_space` or `RankerConfig.search_space`.
"""

from typing import Any

from dsmoe_jax.config import fingerprint, schema

# Choices of a field by its path.
Space = dict[str, tuple[Any, ...]]

_LEARNING_RATES = (3e-4, 1e-3, 3e-3)
_WEIGHT_DECAYS = (0.0, 1e-6, 1e-5)
_INPUT_DROPOUTS = (0.0, 0.1, 0.3, 0.5)
_SHARED: dict[str, Space] = {
    "student": {
        "train.learning_rate": _LEARNING_RATES,
        "train.weight_decay": _WEIGHT_DECAYS,
        "model.input_dropout": _INPUT_DROPOUTS,
        "model.output_dim": (32, 64, 128),
    },
    "teacher": {
        "teacher.learning_rate": _LEARNING_RATES,
        "teacher.weight_decay": _WEIGHT_DECAYS,
        "teacher.model.input_dropout": _INPUT_DROPOUTS,
        "teacher.model.dropout": (0.0, 0.1, 0.3),
    },
}
STAGES = tuple(_SHARED)


def make(
    experiment: schema.Experiment, fixed: tuple[str, ...] = (), *, stage: str = "student"
) -> Space:
    """The fields that a search of a stage tries, but fixed ones, each with its own value first.

    Raises:
      ValueError: When nothing is left to choose, or the method names a field that it lacks.
    """
    values = fingerprint.flatten(fingerprint.as_dict(experiment))
    prefix, model = {
        "student": ("model", experiment.model),
        "teacher": ("teacher.model", experiment.teacher.model),
    }[stage]
    own = {f"{prefix}.{name}": choices for name, choices in model.search_space.items()}
    for field in own:
        if field not in values:
            raise ValueError(
                f"{type(model).__name__}.search_space: expected names of its fields, "
                f"got {field.rpartition('.')[2]!r}"
            )
    space: Space = {}
    for field, choices in {**_SHARED[stage], **own}.items():
        if field in fixed or field not in values:
            continue
        value = values[field]
        # JSON knows no tuples.
        value = tuple(value) if isinstance(value, list) else value
        space[field] = (value, *(choice for choice in choices if choice != value))
    if not space:
        raise ValueError("tune: expected at least one field to choose, got all of them fixed")
    return space


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)
