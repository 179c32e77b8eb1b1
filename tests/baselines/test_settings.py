"""What the files of baselines from other libraries decide, without their libraries."""

import math
import sys
import types

import numpy as np
import pytest

from dsmoe_jax.baselines import implicit as implicit_models
from dsmoe_jax.baselines import lightfm, linear, selection, youtube_dnn
from dsmoe_jax.config import schema
from dsmoe_jax.data import statistics
from tests import tiny

CONFIG = schema.EvalConfig(k=(3, 5), query_batch=16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("baselines") / "store")


@pytest.mark.parametrize(
    "values",
    [
        [*implicit_models.ALS.values()],
        [*implicit_models.BPR.values()],
        [lightfm.COMPONENTS, lightfm.EPOCHS],
        [youtube_dnn.TEMPERATURES, youtube_dnn.EPOCHS],
    ],
)
def test_every_combination_is_within_the_budget_of_twelve_trials(values):
    assert math.prod(map(len, values)) == selection.NUM_TRIALS <= 12


class Factors:
    """Stands for both models of `implicit`: vectors that show who was asked for, and how."""

    made: list

    def __init__(self, **settings):
        self.settings = settings
        self.made.append(self)

    def fit(self, clicks_UV, show_progress):
        self.clicks_UV = clicks_UV
        users, items = clicks_UV.shape
        self.user_factors = np.arange(users, dtype=np.float32)[:, None]
        self.item_factors = np.arange(items, dtype=np.float32)[:, None]

    def recalculate_user(self, query_B, window_BV):
        assert window_BV.shape == (len(query_B), len(self.item_factors))
        return -np.asarray(window_BV.sum(axis=1), np.float32).reshape(-1, 1)


@pytest.fixture
def implicit(monkeypatch):
    """A module of that name in the place of the library, and the models made from it."""
    made = []
    model = type("Model", (Factors,), {"made": made})
    parts = {
        "implicit.als": types.SimpleNamespace(AlternatingLeastSquares=model),
        "implicit.bpr": types.SimpleNamespace(BayesianPersonalizedRanking=model),
    }
    names = {name.partition(".")[2]: part for name, part in parts.items()}
    for name, module in {"implicit": types.SimpleNamespace(**names), **parts}.items():
        monkeypatch.setitem(sys.modules, name, module)
    limits = types.SimpleNamespace(threadpool_limits=lambda limit, user_api: Limit())
    monkeypatch.setitem(sys.modules, "threadpoolctl", limits)
    return made


class Limit:
    """A context without effect."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_bpr_is_fitted_in_one_thread_and_keeps_the_users_training_vector(store, implicit):
    clicks = linear.read_clicks(store)
    fitted = list(implicit_models.fit_bpr(clicks, store, seed=7))
    assert len(fitted) == selection.NUM_TRIALS
    for (settings, _), model in zip(fitted, implicit, strict=True):
        assert model.settings == {
            **settings,
            "random_state": 7,
            "num_threads": 1,
            "use_gpu": False,
        }
        assert model.clicks_UV is clicks.training_UV
    ids = np.array([3, 0])
    user_B = store.queries("test").rows_QC[ids, store.columns["user"]]
    np.testing.assert_array_equal(fitted[0][1]("test", ids)[:, 1], user_B)


def test_als_folds_the_querys_own_window_in(store, implicit):
    clicks = linear.read_clicks(store)
    fitted = list(implicit_models.fit_als(clicks, seed=7))
    assert [model.settings for model in implicit] == [
        {**settings, "random_state": 7, "use_gpu": False} for settings, _ in fitted
    ]
    ids = np.array([3, 0])
    count_B = np.diff(clicks.windows["test"].indptr)[ids]
    np.testing.assert_array_equal(fitted[0][1]("test", ids)[:, 1], -count_B)


def test_implicit_has_four_rows(store, implicit):
    rows = implicit_models.evaluate_baselines(store, CONFIG, seed=0)
    assert [row.name for row in rows] == [
        "implicit ALS",
        "implicit ALS + scenario prior",
        "implicit BPR",
        "implicit BPR + scenario prior",
    ]


def test_clicks_of_unknown_scenario_have_a_context_of_their_own(store, monkeypatch):
    columns, S = store.columns, store.spec.num_scenarios
    first = store.train_NC[0]
    user, item = first[columns["user"]], first[columns["item"]]
    known = statistics.read_interactions(store).tolil()
    [other] = [i for i in range(1, tiny.NUM_ITEMS + 1) if known[user, i] == 0][:1]
    known[user, other] = 1
    monkeypatch.setattr(statistics, "read_interactions", lambda store: known.tocsr())
    click_RV, feature_RF = lightfm.read_pairs(store)
    click_RV = click_RV.tocsr()
    U = len(store.users_sparse)
    pair = user * (S + 1) + first[columns["scenario"]]
    assert click_RV[pair, item] == 1
    assert click_RV[user * (S + 1) + S, other] == 1
    # Training clicks are not repeated in the context of the earlier ones.
    assert click_RV[S :: S + 1].nnz == 1
    pairs = {(row[columns["user"]], row[1], row[columns["item"]]) for row in store.train_NC}
    assert click_RV.nnz == len(pairs) + 1
    assert click_RV.max() == 1
    assert feature_RF.shape == (U * (S + 1), U + S + 1)
    assert set(feature_RF[pair].indices) == {user, U + first[columns["scenario"]]}


def test_youtube_dnn_sees_all_fields_but_the_users_id(store):
    spec = youtube_dnn.choose_features(store.spec)
    assert [feature.name for feature in spec.user_sparse] == ["age"]
    assert [feature.name for feature in spec.user_dense] == ["activity"]
    assert {s.max_len for s in spec.sequences} == {youtube_dnn.HISTORY_LENGTH}
