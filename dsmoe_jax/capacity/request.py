"""What a plan is asked for, and the step that is compiled for it.

Owns the way from flags, a configuration and a shape to `abstract.Setup`.
"""

import dataclasses
from typing import Any

from dsmoe_jax import features
from dsmoe_jax.capacity import abstract, cases
from dsmoe_jax.config import load, schema
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din
from dsmoe_jax.training import row_sparse, sharding


@dataclasses.dataclass(frozen=True)
class Request:
    """What is planned; see the flags."""

    shape: str = "kuairand"
    users: int = 0
    items: int = 0
    batch_size: int = 0
    memory_gb: float = 80.0
    embedding: str | None = None
    average: bool = False
    distill: bool = False
    config: str = ""


def make_setup(request: Request) -> abstract.Setup:
    """The `abstract.Setup` of a request, on all devices of this process.

    Raises:
      ValueError: When the configuration is none, or the devices do not divide the batch.
    """
    experiment = _load(request.config)
    spec = resize(cases.CASES[request.shape][0](), request.users, request.items)
    if request.config:
        spec = features.select(
            spec,
            exclude=(),
            history_length=experiment.features.history_length,
            scenario_history_length=experiment.features.scenario_history_length,
            embedding_dim=experiment.features.embedding_dim,
        )
    mesh, train = sharding.make_mesh(), experiment.train
    embedding = request.embedding or experiment.optim.embedding
    default = train.batch_size if request.config else cases.POSITIVES * mesh.size
    batch_size = request.batch_size or default
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size: expected a multiple of the {mesh.size} devices, got {batch_size}"
        )
    taught = request.distill or experiment.loss.distill_weight > 0
    optim = dataclasses.replace(experiment.optim, embedding=embedding)
    return abstract.Setup(
        experiment.model.make(spec),
        row_sparse.make_updater(optim, spec, mesh, 1e-4, train.weight_decay),
        mesh,
        batch_size=batch_size,
        num_negatives=train.num_negatives,
        teacher=experiment.teacher.model.make(spec) if taught else None,
        averaged=request.average or train.average_decay > 0,
    )


def resize(spec: features.FeatureSpec, users: int, items: int) -> features.FeatureSpec:
    """The features with other numbers of users and items; 0 keeps them."""

    def change(columns: tuple[Any, ...], name: str, count: int) -> tuple[Any, ...]:
        return tuple(
            dataclasses.replace(column, num_ids=count + 1)
            if count and column.name == name
            else column
            for column in columns
        )

    return dataclasses.replace(
        spec,
        user_sparse=change(spec.user_sparse, "user_id", users),
        item_sparse=change(spec.item_sparse, "item_id", items),
    )


def _load(path: str) -> schema.Experiment:
    """A configuration file's experiment, or the paper's defaults without a teacher."""
    if not path:
        return schema.Experiment(
            dataset="plan",
            data=schema.DataConfig(),
            model=dsmoe.DSMOEConfig(),
            teacher=schema.TeacherConfig(model=mmoe_din.MMoEDINConfig()),
            loss=schema.LossConfig(distill_weight=0.0),
        )
    return load.load_config(path)
