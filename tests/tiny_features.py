"""A small feature spec with every kind of feature, and random rows for it."""

import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features


def make_spec(**changes):
    fields = {
        "scenarios": ("A", "B", "C", "D"),
        "user_sparse": (
            features.SparseFeature("user_id", 30),
            features.SparseFeature("age", 5),
            features.SparseFeature("city", 5000),
        ),
        "user_dense": (features.DenseFeature("follows"), features.DenseFeature("fans")),
        "user_bags": (features.BagFeature("interest", 6, 3),),
        "item_sparse": (
            features.SparseFeature("item_id", 20),
            features.SparseFeature("category", 7),
            features.SparseFeature("kind", 3),
        ),
        "item_dense": (features.DenseFeature("duration"),),
        "item_bags": (features.BagFeature("tag", 9, 2),),
        "sequences": (
            features.SequenceFeature("history", ("item_id",), 6),
            features.SequenceFeature("scenario_history", ("item_id",), 4),
            features.SequenceFeature("behavior", ("category", "kind"), 5),
        ),
        "embedding_dim": 4,
    }
    return features.FeatureSpec(**{**fields, **changes})


def make_users(spec, B, seed=0):
    """Random users; the first has empty histories."""
    rng = np.random.default_rng(seed)
    num_ids = {feature.name: feature.num_ids for feature in spec.item_sparse}

    def sequence(feature):
        length_B = rng.integers(0, feature.max_len + 1, B)
        length_B[0] = 0
        mask_BL = np.arange(feature.max_len)[None] < length_B[:, None]
        columns = [rng.integers(1, num_ids[name], mask_BL.shape) for name in feature.fields]
        ids_BLF = np.stack(columns, axis=-1) * mask_BL[..., None]
        return batch_lib.Sequence(_int(ids_BLF), _int(np.zeros(mask_BL.shape)))

    return batch_lib.Users(
        sparse_BF=_int(np.stack([rng.integers(0, f.num_ids, B) for f in spec.user_sparse], -1)),
        dense_BF=jnp.asarray(rng.normal(size=(B, len(spec.user_dense))), jnp.float32),
        bags={f.name: _int(rng.integers(0, f.num_ids, (B, f.max_len))) for f in spec.user_bags},
        sequences={f.name: sequence(f) for f in spec.sequences},
        time_B=_int(np.zeros(B)),
    )


def make_items(spec, shape, seed=1):
    """Random items with the leading axes `shape`; no padding item."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(int(f.name == "item_id"), f.num_ids, shape) for f in spec.item_sparse]
    return batch_lib.Items(
        sparse_VF=_int(np.stack(columns, axis=-1)),
        dense_VF=jnp.asarray(rng.normal(size=(*shape, len(spec.item_dense))), jnp.float32),
        bags={
            f.name: _int(rng.integers(0, f.num_ids, (*shape, f.max_len))) for f in spec.item_bags
        },
    )


def make_scenarios(spec, B):
    """Every scenario in turn."""
    return _int(np.arange(B) % spec.num_scenarios)


def randomise(variables, seed=0, scale=0.3):
    """Every parameter moved away from its initial value, so that no factor is 0."""
    leaves, structure = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        leaf + scale * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return {**variables, "params": jax.tree.unflatten(structure, moved)}


def _int(values):
    return jnp.asarray(values, jnp.int32)
