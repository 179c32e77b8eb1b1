"""Matrix factorisation by `implicit`: ALS (Hu, Koren and Volinsky, ICDM 2008) and BPR (UAI 2009).

Both see who clicked what, the clicks from before the log among it, and nothing of scenarios. ALS
folds a query's own history window in; BPR has no such step and keeps the user's training vector.
Both run on the CPU. BPR runs in one thread, since several race for its vectors and give other
numbers every time; the threads of ALS share nothing.

Letters: B queries of a batch, U rows of the user table, V rows of the corpus.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from dsmoe_jax.baselines import builtin, linear, selection
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib

# What validation chooses from; the rest is the library's default.
ALS = {"factors": (64, 128), "regularization": (100.0, 300.0), "alpha": (10.0, 40.0, 100.0)}
# BPR adds a bias to its factors: 128 numbers a vector.
BPR = {"factors": (63, 127), "learning_rate": (0.02, 0.05, 0.1), "regularization": (0.01, 0.02)}


def evaluate_baselines(
    store: store_lib.Store, config: schema.EvalConfig, *, seed: int
) -> list[builtin.Baseline]:
    """ALS and BPR, each as it comes and with the scenario prior; see `catalogue`."""
    clicks = linear.read_clicks(store)
    models = {"implicit ALS": fit_als(clicks, seed), "implicit BPR": fit_bpr(clicks, store, seed)}
    return [
        row
        for name, fitted in models.items()
        for row in selection.evaluate_trials(name, fitted, store, config, seed=seed)
    ]


def fit_als(clicks: linear.Clicks, seed: int) -> Iterator[selection.Trial]:
    """One trial for each combination of `ALS`."""
    import implicit.als
    import threadpoolctl

    for settings in _combine(ALS):
        # The library's own threads call BLAS, whose threads would compete with them.
        with threadpoolctl.threadpool_limits(1, "blas"):
            model = implicit.als.AlternatingLeastSquares(
                **settings, random_state=seed, use_gpu=False
            )
            model.fit(clicks.training_UV, show_progress=False)

        yield settings, _make_als(model, clicks)


def fit_bpr(clicks: linear.Clicks, store: store_lib.Store, seed: int) -> Iterator[selection.Trial]:
    """One trial for each combination of `BPR`."""
    import implicit.bpr

    user_of = linear.read_column(store, "user")
    for settings in _combine(BPR):
        model = implicit.bpr.BayesianPersonalizedRanking(
            **settings, random_state=seed, num_threads=1, use_gpu=False
        )
        model.fit(clicks.training_UV, show_progress=False)

        yield settings, _make_bpr(model, user_of)


def _make_als(model: Any, clicks: linear.Clicks) -> linear.Scorer:
    return lambda split, query_B: (
        model.recalculate_user(query_B, clicks.windows[split][query_B]) @ model.item_factors.T
    )


def _make_bpr(model: Any, user_of: linear.Scorer) -> linear.Scorer:
    return lambda split, query_B: model.user_factors[user_of(split, query_B)] @ model.item_factors.T


def _combine(values: dict[str, tuple[int | float, ...]]) -> Iterator[builtin.Settings]:
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))
