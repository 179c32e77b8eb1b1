"""Matrix factorisation by `implicit`: ALS (Hu, Koren and Volinsky, ICDM 2008) and BPR (UAI 2009).

Both see who clicked what, the clicks from before the log among it, and nothing of scenarios. ALS
folds a query's own history window in; BPR has no such step and keeps the user's training vector.
Where the store holds exposures both learn from them too, as weak positives: ALS with a share of a
click's confidence, BPR half as often as from a click. Both run on the CPU. BPR runs in one thread,
since several race for its vectors and give other numbers every time; the threads of ALS share
nothing.

Letters: B queries of a batch, U rows of the user table, V rows of the corpus.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse

from dsmoe_jax.baselines import builtin, linear, selection
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib

# What validation chooses from; the rest is the library's default.
ALS = {"factors": (64, 128), "regularization": (100.0, 300.0), "alpha": (10.0, 40.0, 100.0)}
ALS_WITH_EXPOSURES = {
    "factors": (128,),
    "regularization": (100.0, 300.0),
    "alpha": (10.0, 40.0),
    "exposure_weight": (0.1, 0.3, 1.0),
}
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
    """One trial for each combination of `ALS`, or of `ALS_WITH_EXPOSURES`."""
    import implicit.als
    import threadpoolctl

    for settings in _combine(ALS_WITH_EXPOSURES if clicks.exposures_UV.nnz else ALS):
        chosen = dict(settings)
        weight = chosen.pop("exposure_weight", 0.0)
        # The library's own threads call BLAS, whose threads would compete with them.
        with threadpoolctl.threadpool_limits(1, "blas"):
            model = implicit.als.AlternatingLeastSquares(**chosen, random_state=seed, use_gpu=False)
            model.fit(clicks.training_UV + weight * clicks.exposures_UV, show_progress=False)

        windows = {
            split: clicks.windows[split] + weight * clicks.shown[split] for split in clicks.windows
        }
        yield settings, _make_als(model, windows)


def fit_bpr(clicks: linear.Clicks, store: store_lib.Store, seed: int) -> Iterator[selection.Trial]:
    """One trial for each combination of `BPR`."""
    import implicit.bpr

    user_of = linear.read_column(store, "user")
    training_UV = _repeat(clicks)
    for settings in _combine(BPR):
        model = implicit.bpr.BayesianPersonalizedRanking(
            **settings, random_state=seed, num_threads=1, use_gpu=False
        )
        model.fit(training_UV, show_progress=False)

        yield settings, _make_bpr(model, user_of)


def _repeat(clicks: linear.Clicks) -> scipy.sparse.csr_matrix:
    """What BPR draws positives from: clicks, or every click twice and every exposure once."""
    if not clicks.exposures_UV.nnz:
        return clicks.training_UV
    parts = [clicks.training_UV, clicks.training_UV, clicks.exposures_UV]
    count_U = np.sum([np.diff(part.indptr) for part in parts], axis=0)
    row = np.concatenate([part.tocoo().row for part in parts])
    order = np.argsort(row, kind="stable")
    item = np.concatenate([part.indices for part in parts])[order]
    indptr = np.concatenate([[0], np.cumsum(count_U)]).astype(np.int32)
    # The library draws an entry of `indices`; SciPy adds repeated ones up only when asked to.
    return scipy.sparse.csr_matrix(
        (np.ones(len(item), np.float32), item, indptr), clicks.training_UV.shape
    )


def _make_als(model: Any, windows: dict[str, scipy.sparse.csr_matrix]) -> linear.Scorer:
    return lambda split, query_B: (
        model.recalculate_user(query_B, windows[split][query_B]) @ model.item_factors.T
    )


def _make_bpr(model: Any, user_of: linear.Scorer) -> linear.Scorer:
    return lambda split, query_B: model.user_factors[user_of(split, query_B)] @ model.item_factors.T


def _combine(values: dict[str, tuple[int | float, ...]]) -> Iterator[builtin.Settings]:
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))
