"""LightFM with the WARP loss (Kula, 2015; Weston, Bengio and Usunier, IJCAI 2011).

A user's vector is the sum of its own and the scenario's, an item's is its own, as in LightFM's
handling of context. Clicks from before the log, whose scenario is unknown, have a context of their
own. A query's history window is not folded in: the library has no such step. One thread, since
several race for the vectors and give other numbers every time.

The distribution `rectools-lightfm` is LightFM with a build for today's Python.

Letters: B queries of a batch, U rows of the user table, V rows of the corpus (row 0 is padding),
S scenarios, R = U (S + 1) pairs of user and context, F = U + S + 1 features of a pair.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse

from dsmoe_jax.baselines import builtin, linear, selection
from dsmoe_jax.config import schema
from dsmoe_jax.data import statistics
from dsmoe_jax.data import store as store_lib

# What validation chooses from; the rest is the library's default. A fit is evaluated after each of
# these numbers of epochs, and each is a trial.
COMPONENTS = (32, 64, 128)
EPOCHS = (10, 20, 30, 40)


def evaluate_baselines(
    store: store_lib.Store, config: schema.EvalConfig, *, seed: int
) -> list[builtin.Baseline]:
    """WARP as it comes and with the scenario prior; see `catalogue`."""
    return selection.evaluate_trials("LightFM WARP", fit(store, seed), store, config, seed=seed)


def fit(store: store_lib.Store, seed: int) -> Iterator[selection.Trial]:
    """One trial for each width and number of epochs."""
    import lightfm

    click_RV, feature_RF = read_pairs(store)
    for components in COMPONENTS:
        model = lightfm.LightFM(no_components=components, loss="warp", random_state=seed)
        done = 0
        for epochs in EPOCHS:
            model.fit_partial(
                click_RV, user_features=feature_RF, epochs=epochs - done, num_threads=1
            )
            done = epochs
            yield {"no_components": components, "epochs": epochs}, _make_scorer(model, store)


def _make_scorer(model: Any, store: store_lib.Store) -> linear.Scorer:
    user_of, scenario_of = (linear.read_column(store, name) for name in ("user", "scenario"))
    U = len(store.users_sparse)
    # The next epochs write into the model's own arrays.
    vector_FC = model.user_embeddings.copy()
    item_VC, bias_V = model.item_embeddings.copy(), model.item_biases.copy()

    def score(split: str, query_B: np.ndarray) -> np.ndarray:
        user_BC = vector_FC[user_of(split, query_B)]
        user_BC = user_BC + vector_FC[U + scenario_of(split, query_B)]
        return np.asarray(user_BC @ item_VC.T + bias_V[None])

    return score


def read_pairs(
    store: store_lib.Store,
) -> tuple[scipy.sparse.coo_matrix, scipy.sparse.csr_matrix]:
    """Clicks [R, V] of pairs of user and context, and the two features [R, F] of each pair.

    Pair `user * (S + 1) + context`; context S is that of clicks from before the log.
    """
    columns, train_NC = store.columns, store.train_NC
    U, S, V = len(store.users_sparse), store.spec.num_scenarios, store.spec.num_items
    user_N, item_N = train_NC[:, columns["user"]], train_NC[:, columns["item"]]
    logged_UV = scipy.sparse.csr_matrix((np.ones(len(user_N)), (user_N, item_N)), shape=(U, V))
    earlier_UV = statistics.read_interactions(store) - logged_UV.sign()
    earlier_UV.eliminate_zeros()
    earlier = earlier_UV.tocoo()
    pair = np.concatenate(
        [user_N * (S + 1) + train_NC[:, columns["scenario"]], earlier.row * (S + 1) + S]
    )
    item = np.concatenate([item_N, earlier.col])
    shape = (U * (S + 1), V)
    click_RV = scipy.sparse.csr_matrix((np.ones(len(pair), np.float32), (pair, item)), shape=shape)
    pair_R = np.arange(U * (S + 1))
    feature = np.stack([pair_R // (S + 1), U + pair_R % (S + 1)], axis=1).ravel()
    feature_RF = scipy.sparse.csr_matrix(
        (np.ones(len(feature), np.float32), feature, 2 * np.arange(len(pair_R) + 1)),
        shape=(len(pair_R), U + S + 1),
    )
    return click_RV.sign().tocoo(), feature_RF
