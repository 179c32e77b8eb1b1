"""Abstract training step: its arguments as shapes in their layout, to be compiled, not run.

Owns no numbers: nothing is allocated, so that shapes may be larger than any machine.
"""

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.training import optimizer, sharding, train_state, train_step

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a step is built of; `batch_size` counts positives over all devices."""

    model: nn.Module
    updater: optimizer.Updater
    mesh: sharding.AnyMesh
    batch_size: int
    num_negatives: int
    teacher: nn.Module | None = None
    averaged: bool = False

    @property
    def spec(self) -> features.FeatureSpec:
        """The features."""
        spec: features.FeatureSpec = self.model.spec
        return spec

    def state(self) -> train_state.TrainState:
        """The training state."""
        return train_state.abstract_state(
            self.model, self.updater, mesh=self.mesh, averaged=self.averaged
        )

    def frozen_teacher(self) -> train_state.Frozen | None:
        """What is kept of the teacher."""
        if self.teacher is None:
            return None
        none = optimizer.Dense(optimizer.make_optimizer(1.0, 0.0))
        return train_state.freeze(train_state.abstract_state(self.teacher, none, mesh=self.mesh))

    def corpus(self) -> batch_lib.Items:
        """All items."""
        layout, rows = sharding.rows_layout(self.mesh, self.spec.num_items)
        _, items, _ = train_state.example_inputs(self.spec)
        return _with_rows(items, rows, 2, layout)

    def batch(self) -> batch_lib.Batch:
        """One batch."""
        users, _, scenario_B = train_state.example_inputs(self.spec)
        batch = batch_lib.Batch(users, scenario_B, scenario_B)
        return _with_rows(batch, self.batch_size, 1, sharding.by_rows(self.mesh))

    def lower_step(self) -> Any:
        """The jitted, donated step of the training loop, lowered; `compile()` it.

        The mesh must be of real devices.
        """
        state = self.state()
        step = train_step.make_train_step(
            self.model,
            self.updater,
            num_items=self.spec.num_items,
            num_negatives=self.num_negatives,
            teacher=self.teacher,
            average_decay=0.5 if self.averaged else 0.0,
        )
        return train_step.jit_step(step, self.mesh, state).lower(
            state,
            self.frozen_teacher(),
            self.corpus(),
            self.batch(),
            jax.ShapeDtypeStruct((), jnp.float32),
            jax.eval_shape(lambda: jax.random.key(0)),
        )


def _with_rows(tree: T, rows: int, leading: int, layout: Any) -> T:
    """The arrays' shapes with so many rows in place of their leading axes."""
    shapes: T = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (rows, *leaf.shape[leading:]), leaf.dtype, sharding=layout
        ),
        tree,
    )
    return shapes
