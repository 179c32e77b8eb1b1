"""A small model with weights by a plain rule, which PyTorch and JAX can both be given."""

from typing import Any

import jax
import numpy as np

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.capacity import cases
from dsmoe_jax.config import fingerprint
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din
from dsmoe_jax.training import train_state

STUDENT = dsmoe.DSMOEConfig(num_experts=2, rank=2, hidden_dim=6, output_dim=4)
TEACHER = mmoe_din.MMoEDINConfig(
    num_experts=2, expert_dims=(6, 4), tower_dims=(3,), attention_hidden=(4,), dropout=0.0
)
DISTILL_WEIGHT = 0.7


def make_spec() -> features.FeatureSpec:
    """Every kind of feature, two histories."""
    return features.FeatureSpec(
        scenarios=("A", "B", "C"),
        user_sparse=(features.SparseFeature("user_id", 31), features.SparseFeature("age", 5)),
        user_dense=(features.DenseFeature("activity"),),
        user_bags=(),
        item_sparse=(features.SparseFeature("item_id", 41), features.SparseFeature("author", 9)),
        item_dense=(features.DenseFeature("duration"),),
        item_bags=(features.BagFeature("tag", 6, 3),),
        sequences=(
            features.SequenceFeature("history", ("item_id",), 5),
            features.SequenceFeature("scenario_history", ("item_id",), 3),
        ),
        embedding_dim=4,
    )


def make_batch() -> tuple[batch_lib.Batch, batch_lib.Items]:
    """Twelve examples with four candidates each."""
    spec = make_spec()
    case = cases.make(spec, 1, shares=(0.5, 0.3, 0.2), positives=12)
    candidate_BG = np.random.default_rng(1).integers(1, spec.num_items, (12, 4))
    return case.batches[0], batch_lib.take_items(case.corpus, candidate_BG)


def make_weights(model_config: Any) -> dict[str, Any]:
    """`params` and `batch_stats` of a model: sin of a running count, variances around 1."""
    model = model_config.make(make_spec())
    users, items, scenario_B = train_state.example_inputs(make_spec())
    shapes = jax.eval_shape(
        lambda key: model.init(key, users, items, scenario_B, train=False), jax.random.key(0)
    )
    count = 0

    def fill(path: Any, leaf: Any) -> np.ndarray:
        nonlocal count
        wave = np.sin(0.7 * np.arange(count, count + leaf.size)).reshape(leaf.shape)
        count += leaf.size
        name = jax.tree_util.keystr(path)
        if "'var'" in name:
            return (1 + 0.5 * wave).astype(np.float32)
        value = 0.4 * wave
        if "_tables" in name:
            # Id 0 is unknown and embeds to 0.
            value[0] = 0
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, {k: shapes[k] for k in ("params", "batch_stats")})


def norms(gradient: Any) -> dict[str, float]:
    """Euclidean norm of every leaf by its dotted name."""
    return {
        name: float(np.linalg.norm(np.asarray(leaf, np.float64)))
        for name, leaf in sorted(fingerprint.flatten(gradient).items())
    }
