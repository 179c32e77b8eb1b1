"""Benchmark shapes: features, corpus and batches that steps are timed on.

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


def _spec(
    scenarios: str,
    users: str,
    items: str,
    user_dense: str = "",
    item_dense: str = "",
    item_bags: tuple[features.BagFeature, ...] = (),
) -> features.FeatureSpec:
    """Features from names and sizes of vocabularies, id 0 included, and two histories of items."""

    def sparse(sizes: str) -> tuple[features.SparseFeature, ...]:
        named = map(str.split, sizes.split(","))
        return tuple(features.SparseFeature(name, int(size)) for name, size in named)

    histories = ("history", "scenario_history")
    return features.FeatureSpec(
        scenarios=tuple(scenarios.split()),
        user_sparse=sparse(users),
        user_dense=tuple(map(features.DenseFeature, user_dense.split())),
        user_bags=(),
        item_sparse=sparse(items),
        item_dense=tuple(map(features.DenseFeature, item_dense.split())),
        item_bags=item_bags,
        sequences=tuple(features.SequenceFeature(h, ("item_id",), HISTORY) for h in histories),
    )


_ONE_HOT = (3, 8, 51, 1472, 16, 35, 4, 119, 455, 8, 6, 6, 3, 3, 3, 3, 3, 3)
# KuaiRand-Pure: all fields of the packaged rows.
_KUAIRAND = _spec(
    "K1 K2 K3 K4",
    "user_id 27_286, user_active_degree 10, is_live_streamer 2, is_video_author 3, "
    "follow_user_num_range 9, fans_user_num_range 10, friend_user_num_range 8, "
    "register_days_range 9" + "".join(f", onehot_feat{n} {k}" for n, k in enumerate(_ONE_HOT)),
    "item_id 7_584, author_id 6_511, video_type 4, upload_dt 4, upload_type 15, music_id 7_203, "
    "music_type 6, video_duration_bucket 21",
    "follow_user_num fans_user_num friend_user_num register_days",
    "video_duration server_width server_height",
    (features.BagFeature("tag", 47, 3),),
)
# Alimama: the sizes of the published tables.
_ALIMAMA = _spec(
    "A1 A2 A3 A4",
    "user_id 1_061_769, cms_segid 98, cms_group_id 14, final_gender_code 3, age_level 8, "
    "pvalue_level 4, shopping_level 4, occupation 3, new_user_class_level 5",
    "item_id 846_812, category 6_770, brand 99_815, campaign_id 423_437, customer 255_877",
    item_dense="price",
)
# Features, and the scenarios' shares of the examples.
CASES = {
    "kuairand": (_KUAIRAND, (0.867, 0.087, 0.028, 0.018)),
    "alimama": (_ALIMAMA, (0.45, 0.25, 0.2, 0.1)),
}


def make_case(shape: str, num_batches: int) -> Case:
    """The case of a name in `CASES`; for a number, two id tables of half as many rows each."""
    shares = (0.5, 0.5) if shape.isdigit() else CASES[shape][1]
    return make(make_spec(shape), num_batches, shares=shares)


def make_spec(shape: str) -> features.FeatureSpec:
    """The features of `make_case`."""
    if shape.isdigit():
        half = int(shape) // 2
        return _spec("S1 S2", f"user_id {half}", f"item_id {half}")
    return CASES[shape][0]


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
