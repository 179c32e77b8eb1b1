"""A small feature spec with every kind of feature, and random rows for it."""

import functools

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
        blocks = spec.num_scenarios if feature.per_scenario else 1
        length = feature.max_len // blocks
        length_BX = rng.integers(0, length + 1, (B, blocks))
        length_BX[0] = 0
        mask_BL = (np.arange(length)[None, None] < length_BX[..., None]).reshape(B, -1)
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


def make_variables(model, users, items, scenario_B, seed=0):
    """Random variables of a model, so that no factor is 0 and no statistic is at its start."""
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), users, items, scenario_B)
    return randomise(shapes, seed)


def randomise(variables, seed=0):
    """Random values in the shapes of `variables`; variances and slopes are positive, ids are 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.ones(leaf.shape, leaf.dtype)
        value = 0.4 * rng.normal(size=leaf.shape)
        name = path[-1].key
        positive = name in ("var", "scale", "prelu_slope")
        return jnp.asarray(np.abs(value) + 0.5 if positive else value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


def _int(values):
    return jnp.asarray(values, jnp.int32)
