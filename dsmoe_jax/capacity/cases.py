"""The shapes that steps are timed on: features, corpus and batches.

Owns what is measured. Ids are generated, with the sizes of the two data sets; those of users and
items are drawn by Zipf's law, whose head makes a scatter contend as real logs do.
"""

import dataclasses

import numpy as np

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features

POSITIVES, NEGATIVES = 816, 4
HISTORY = 50
ZIPF_EXPONENT = 0.8


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape: its features, all items and training batches."""

    spec: features.FeatureSpec
    corpus: batch_lib.Items
    batches: list[batch_lib.Batch]


# Sizes of the vocabularies, id 0 included, of the packaged rows and of the published tables.
_ONE_HOT = (3, 8, 51, 1472, 16, 35, 4, 119, 455, 8, 6, 6, 3, 3, 3, 3, 3, 3)
_KUAIRAND_USER = """
    user_id 27_286, user_active_degree 10, is_live_streamer 2, is_video_author 3,
    follow_user_num_range 9, fans_user_num_range 10, friend_user_num_range 8, register_days_range 9
""" + "".join(f", onehot_feat{n} {size}" for n, size in enumerate(_ONE_HOT))
_KUAIRAND_ITEM = """
    item_id 7_584, author_id 6_511, video_type 4, upload_dt 4, upload_type 15, music_id 7_203,
    music_type 6, video_duration_bucket 21
"""
_ALIMAMA_USER = """
    user_id 1_061_769, cms_segid 98, cms_group_id 14, final_gender_code 3, age_level 8,
    pvalue_level 4, shopping_level 4, occupation 3, new_user_class_level 5
"""
_ALIMAMA_ITEM = (
    "item_id 846_812, category 6_770, brand 99_815, campaign_id 423_437, customer 255_877"
)


def kuairand_spec() -> features.FeatureSpec:
    """KuaiRand-Pure: 27,285 users, 7,583 items, all fields, two histories of 50 items."""
    return features.FeatureSpec(
        scenarios=("K1", "K2", "K3", "K4"),
        user_sparse=_sparse(_KUAIRAND_USER),
        user_dense=_dense("follow_user_num", "fans_user_num", "friend_user_num", "register_days"),
        user_bags=(),
        item_sparse=_sparse(_KUAIRAND_ITEM),
        item_dense=_dense("video_duration", "server_width", "server_height"),
        item_bags=(features.BagFeature("tag", 47, 3),),
        sequences=_histories(),
    )


def alimama_spec() -> features.FeatureSpec:
    """Alimama: 1,061,768 users, 846,811 items, two histories of 50 items."""
    return features.FeatureSpec(
        scenarios=("A1", "A2", "A3", "A4"),
        user_sparse=_sparse(_ALIMAMA_USER),
        user_dense=(),
        user_bags=(),
        item_sparse=_sparse(_ALIMAMA_ITEM),
        item_dense=_dense("price"),
        item_bags=(),
        sequences=_histories(),
    )


def rows_spec(num_rows: int) -> features.FeatureSpec:
    """Nothing but two id tables of half of `num_rows` each, and two histories of 50 items."""
    half = num_rows // 2
    return features.FeatureSpec(
        scenarios=("S1", "S2"),
        user_sparse=_sparse(f"user_id {half}"),
        user_dense=(),
        user_bags=(),
        item_sparse=_sparse(f"item_id {half}"),
        item_dense=(),
        item_bags=(),
        sequences=_histories(),
    )


# Features, and the scenarios' shares of the examples.
CASES = {
    "kuairand": (kuairand_spec, (0.867, 0.087, 0.028, 0.018)),
    "alimama": (alimama_spec, (0.45, 0.25, 0.2, 0.1)),
}


def make_case(shape: str, num_batches: int) -> Case:
    """The case of a name in `CASES`, or of `rows_spec` for a number."""
    if shape.isdigit():
        return make(rows_spec(int(shape)), num_batches, shares=(0.5, 0.5))
    make_spec, shares = CASES[shape]
    return make(make_spec(), num_batches, shares=shares)


def _sparse(sizes: str) -> tuple[features.SparseFeature, ...]:
    named = map(str.split, sizes.split(","))
    return tuple(features.SparseFeature(name, int(size)) for name, size in named)


def _dense(*names: str) -> tuple[features.DenseFeature, ...]:
    return tuple(features.DenseFeature(name) for name in names)


def _histories() -> tuple[features.SequenceFeature, ...]:
    names = ("history", "scenario_history")
    return tuple(features.SequenceFeature(name, ("item_id",), HISTORY) for name in names)


def make(
    spec: features.FeatureSpec,
    num_batches: int,
    *,
    shares: tuple[float, ...],
    positives: int = POSITIVES,
) -> Case:
    """Generated corpus and batches for features; `shares` are the scenarios', of the examples."""
    rng = np.random.default_rng(0)
    V = spec.num_items
    sparse_VF = np.stack([rng.integers(0, f.num_ids, V) for f in spec.item_sparse], axis=1)
    sparse_VF[:, 0] = np.arange(V)
    sparse_VF[0] = 0
    corpus = batch_lib.Items(
        sparse_VF=sparse_VF.astype(np.int32),
        dense_VF=rng.standard_normal((V, len(spec.item_dense)), np.float32),
        bags={f.name: _bag(rng, f, V) for f in spec.item_bags},
    )
    batches = [_batch(rng, spec, shares, positives) for _ in range(num_batches)]
    return Case(spec, corpus, batches)


def _batch(
    rng: np.random.Generator, spec: features.FeatureSpec, shares: tuple[float, ...], B: int
) -> batch_lib.Batch:
    sizes = [f.num_ids for f in spec.user_sparse]
    sparse_BF = np.stack(
        [_zipf(rng, size, B) if size > 10_000 else rng.integers(0, size, B) for size in sizes],
        axis=1,
    )
    sequences = {}
    for sequence in spec.sequences:
        count_B = rng.integers(0, sequence.max_len + 1, B)
        mask_BL = np.arange(sequence.max_len)[None] < count_B[:, None]
        ids_BL = _zipf(rng, spec.num_items, mask_BL.shape) * mask_BL
        sequences[sequence.name] = batch_lib.Sequence(
            ids_BL[..., None].astype(np.int32), np.zeros(mask_BL.shape, np.int32)
        )
    users = batch_lib.Users(
        sparse_BF=sparse_BF.astype(np.int32),
        dense_BF=rng.standard_normal((B, len(spec.user_dense)), np.float32),
        bags={f.name: _bag(rng, f, B) for f in spec.user_bags},
        sequences=sequences,
        time_B=np.zeros(B, np.int32),
    )
    scenario_B = rng.choice(len(shares), B, p=np.array(shares) / sum(shares)).astype(np.int32)
    return batch_lib.Batch(users, scenario_B, _zipf(rng, spec.num_items, B).astype(np.int32))


def _bag(rng: np.random.Generator, bag: features.BagFeature, rows: int) -> np.ndarray:
    count_R = rng.integers(0, bag.max_len + 1, rows)
    mask_RP = np.arange(bag.max_len)[None] < count_R[:, None]
    return (rng.integers(1, bag.num_ids, mask_RP.shape) * mask_RP).astype(np.int32)


def _zipf(rng: np.random.Generator, num_ids: int, shape: int | tuple[int, ...]) -> np.ndarray:
    """Ids in [1, num_ids) with probability proportional to rank ** -ZIPF_EXPONENT, rank = id."""
    power = 1.0 - ZIPF_EXPONENT
    uniform = rng.random(shape)
    rank: np.ndarray = (1.0 + uniform * ((num_ids - 1.0) ** power - 1.0)) ** (1.0 / power)
    return np.clip(rank.astype(np.int64), 1, num_ids - 1)
