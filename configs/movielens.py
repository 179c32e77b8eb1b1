"""MovieLens: sequences of ratings, leave-one-out, one scenario; hit rate, NDCG and MRR.

    python -m dsmoe_jax.main --config configs/movielens.py:ml1m,fuxi --config.data.raw_dir=FOLDER
    python -m dsmoe_jax.main --config configs/movielens.py:ml20m,hstu --config.data.raw_dir=FOLDER
        Data: the official files, from https://grouplens.org/datasets/movielens (ml-1m, ml-20m).
    python -m dsmoe_jax.main --config configs/movielens.py:synthetic,fuxi_mme
        Data: generated rows in the layout of MovieLens-1M; they show that the path works, not how
        well a method does. Time: one to two minutes on one core.

The protocol is that of the public code of HSTU and FuXi-alpha: all ratings are positives, the last
one of every user is tested against the whole catalogue without what the user rated before, the
request's time is known, a rank beyond 2,500 counts as 2,501. **Deviation:** they choose no epoch;
here the rating before the last one validates, and every method's best epoch on it is reported.
With one relevant item a query, recall and hit rate are the same.

Expected, of the papers (ML-1M, 2 blocks, NDCG@10 and HR@10): HSTU .1639 and .2969, FuXi-alpha .1835
and .3254; nothing here was run on the official files.

Variants, one token of the data and at most one of every other axis, in any order:
    data       ml1m, ml20m, synthetic
    method     any of `dsmoe_jax.models.registry.MATCHERS` but DSMOE, without which token fuxi runs
"""

from typing import Any

from dsmoe_jax.config import schema, variants
from dsmoe_jax.data.prepare import movielens
from dsmoe_jax.data.synthetic import movielens_rows
from dsmoe_jax.models import registry
from dsmoe_jax.models.matching import fuxi, next_item

AXES = {"data": ("ml1m", "ml20m", "synthetic"), "method": registry.METHOD_TOKENS}

# Of the papers' larger data set; the smaller one's values are the methods' defaults.
ML20M: dict[str, Any] = {"output_dim": 256, "num_heads": 8}


def get_config(variant: str = "") -> schema.Experiment:
    """The experiment of a variant, e.g. `ml1m,hstu`.

    Raises:
      ValueError: When no data set is chosen.
    """
    chosen = variants.parse(variant, AXES)
    if "data" not in chosen:
        raise ValueError(f"variant: expected one of {', '.join(AXES['data'])}, got {variant!r}")
    model = registry.make_matcher({"method": "fuxi", **chosen})
    data: movielens.MovieLensConfig = movielens_rows.SyntheticMovieLensConfig()
    if chosen["data"] != "synthetic":
        data = movielens.MovieLensConfig(
            name={"ml1m": "MovieLens-1M", "ml20m": "MovieLens-20M"}[chosen["data"]]
        )
    if chosen["data"] == "ml20m" and isinstance(model, next_item.NextItemConfig):
        variants.assign(model, ML20M)
        if isinstance(model, fuxi.FuxiConfig | fuxi.FuxiMMEConfig):
            model.ffn_multiple = 4
    experiment = schema.Experiment(
        dataset=data.name,
        variant=variant,
        data=data,
        model=model,
        teacher=schema.TeacherConfig(model=registry.make_teacher({})),
        features=schema.FeatureConfig(history_length=200),
        loss=schema.LossConfig(distill_weight=0.0),
        eval=schema.EvalConfig(k=(10, 50), mrr_depth=2500),
    )
    experiment.train.learning_rate = 1e-3
    experiment.train.max_epochs = 101
    variants.assign(experiment.train, model.recipe)
    if chosen["data"] == "synthetic":
        experiment.features.history_length = 50
        experiment.train.max_epochs = 30
    return experiment
