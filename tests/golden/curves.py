"""Losses of short trainings from fixed seeds, to be equal whatever makes a step fast.

`python -m tests.golden.curves` writes `curves.json` anew: only where numbers are meant to change,
as by another objective or initialisation, never for a step that is merely faster.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsmoe_jax import optim, sharding, train_state, train_step
from dsmoe_jax.bench import cases
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din
from tests.bench import small_case

PATH = pathlib.Path(__file__).with_name("curves.json")
STEPS, LEARNING_RATE = 12, 1e-2
VARIANTS = {
    "default": {},
    "distilled": {},
    "no_sap": {"use_sap": False},
    "bn": {"norm": "bn"},
    "none": {"norm": "none"},
    "feature_gate": {"gate_input": "scenario_and_features"},
    "scenario_input": {"input_includes_scenario": True, "input_dropout": 0.2},
    "shared_item_tower": {"item_scenario": "shared"},
}


def train(variant: str) -> list[float]:
    """The losses of a variant's first steps."""
    spec = small_case.make_spec()
    case = cases.make("golden", spec, 3, shares=(0.5, 0.3, 0.2), positives=24)
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = dsmoe.DSMOEConfig(
        num_experts=2, rank=2, hidden_dim=6, output_dim=4, **VARIANTS[variant]
    ).make(spec)
    # A bias before a normalisation has no gradient but rounding, of which Adam's usual epsilon
    # makes full steps: every processor would have curves of its own.
    adam = optax.adam(LEARNING_RATE, eps=1e-3)
    updater = optim.Dense(optax.chain(optax.add_decayed_weights(1e-4), adam))
    teacher, frozen = None, None
    if variant == "distilled":
        teacher = mmoe_din.MMoEDINConfig(
            num_experts=2, expert_dims=(6, 4), tower_dims=(3,), attention_hidden=(4,), dropout=0.0
        ).make(spec)
        frozen = train_state.freeze(
            train_state.init_state(teacher, updater, key=jax.random.key(2), mesh=mesh)
        )
    state = train_state.init_state(model, updater, key=jax.random.key(1), mesh=mesh)
    step = jax.jit(
        train_step.make_train_step(
            model, updater, num_items=spec.num_items, num_negatives=3, teacher=teacher
        )
    )
    corpus, losses = jax.tree.map(jnp.asarray, case.corpus), []
    for index in range(STEPS):
        batch = jax.tree.map(jnp.asarray, case.batches[index % len(case.batches)])
        state, metrics = step(state, frozen, corpus, batch, jnp.float32(1), jax.random.key(3))
        losses.append(float(np.asarray(metrics["loss"])))
    return losses


if __name__ == "__main__":
    PATH.write_text(json.dumps({name: train(name) for name in VARIANTS}, indent=1) + "\n")
