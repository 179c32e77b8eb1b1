"""Baselines with their libraries, which the gate does not install.

pip install '.[cpu,dev,baselines]' && python -m pytest tests/baselines/libraries.py
"""

import numpy as np
import pytest

from dsmoe_jax.baselines import implicit, linear, youtube_dnn
from dsmoe_jax.baselines import lightfm as lightfm_warp
from dsmoe_jax.config import schema
from tests import tiny

CONFIG = schema.EvalConfig(k=(3, 5), query_batch=16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("libraries") / "store")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(implicit, "ALS", {"factors": (4,), "regularization": (1.0,)})
    monkeypatch.setattr(implicit, "BPR", {"factors": (3,), "learning_rate": (0.05,)})
    monkeypatch.setattr(lightfm_warp, "COMPONENTS", (4,))
    monkeypatch.setattr(lightfm_warp, "EPOCHS", (5, 20))
    monkeypatch.setattr(youtube_dnn, "TEMPERATURES", (0.2,))
    monkeypatch.setattr(youtube_dnn, "EPOCHS", (10, 30))
    monkeypatch.setattr(youtube_dnn, "BATCH_SIZE", 64)
    monkeypatch.setattr(youtube_dnn, "NUM_NEGATIVES", 20)


@pytest.mark.parametrize("module", [implicit, lightfm_warp, youtube_dnn])
def test_a_baseline_finds_what_users_like_and_gives_the_same_numbers_again(module, store, small):
    rows = module.evaluate_baselines(store, CONFIG, seed=1)
    again = module.evaluate_baselines(store, CONFIG, seed=1)
    for row, same in zip(rows, again, strict=True):
        assert row.settings == same.settings
        np.testing.assert_array_equal(row.test.recall[3], same.test.recall[3])
    # Of 41 items about 35 are left, half of which the user likes.
    for row in rows:
        both = np.concatenate([row.validation.recall[5], row.test.recall[5]])
        assert both.mean() > 1.2 * 5 / 35, row.name


def test_a_later_number_of_epochs_leaves_the_scores_of_an_earlier_one(store, small):
    for module in (lightfm_warp, youtube_dnn):
        fitted = module.fit(store, 1)
        _, score = next(fitted)
        before_BV = score("test", np.arange(5))
        _, later = next(fitted)
        np.testing.assert_array_equal(score("test", np.arange(5)), before_BV)
        assert np.abs(later("test", np.arange(5)) - before_BV).max() > 0


def test_warp_scores_as_its_library_does(store, small):
    import lightfm

    click_RV, feature_RF = lightfm_warp.read_pairs(store)
    model = lightfm.LightFM(no_components=4, loss="warp", random_state=1)
    model.fit(click_RV, user_features=feature_RF, epochs=5, num_threads=1)
    _, score = next(lightfm_warp.fit(store, 1))
    ids = np.arange(6)
    user_B = linear.read_column(store, "user")("test", ids)
    scenario_B = linear.read_column(store, "scenario")("test", ids)
    items = np.arange(tiny.NUM_ITEMS + 1)
    for row, pair in enumerate(user_B * (store.spec.num_scenarios + 1) + scenario_B):
        expected = model.predict(int(pair), items, user_features=feature_RF)
        # A constant of the user and the scenario does not change the order.
        difference = score("test", ids)[row] - expected
        np.testing.assert_allclose(difference, difference[0], atol=1e-5)
