import math

import numpy as np
import pytest

from dsmoe_jax.compare import estimates, plan
from dsmoe_jax.compare.report import finished
from tests.compare import made_up


@pytest.fixture
def systems(tmp_path):
    made_up.save_comparison(tmp_path, days=(0, 2))
    rows = plan.systems_of("table2", "configs/kuairand.py:sample")
    return {system.name: system for system in finished.load(tmp_path, rows)}


def test_a_mean_is_that_of_every_seeds_queries(systems):
    own = systems["dsmoe"].on_days(0)
    pooled = estimates.pool(own, 5)
    assert pooled.recall_NQ.shape == (2, sum(made_up.QUERIES))
    found = estimates.estimate(pooled, made_up.SCENARIOS)
    values = [entry.summary["scenarios"]["K1"]["recall@5"] for entry in own.entries]
    assert found["K1"].mean == pytest.approx(np.mean(values))
    assert found["K1"].spread == pytest.approx(np.std(values, ddof=1))
    averaged = pooled.recall_NQ.mean(axis=0)[pooled.scenario_Q == 0]
    assert found["K1"].error == pytest.approx(averaged.std(ddof=1) / np.sqrt(len(averaged)))
    assert found["macro"].mean == pytest.approx((found["K1"].mean + found["K2"].mean) / 2)


def test_pooled_days_weigh_by_their_queries(systems):
    pooled = estimates.pool(systems["dsmoe"], 5)
    assert pooled.recall_NQ.shape == (2, 2 * sum(made_up.QUERIES))
    assert len(np.unique(pooled.key_Q)) == len(pooled.key_Q)
    one_day = estimates.pool(systems["dsmoe"].on_days(0), 5)
    narrow = estimates.estimate(pooled, made_up.SCENARIOS)["K2"].error
    assert narrow < estimates.estimate(one_day, made_up.SCENARIOS)["K2"].error


def test_a_system_against_itself_is_noise_and_against_a_worse_one_above(systems):
    own, random = (estimates.pool(systems[name], 5) for name in ("dsmoe", "random"))
    same = estimates.compare(own, own, made_up.SCENARIOS)
    assert {interval.verdict for interval in same.values()} == {"noise"}
    assert same["K1"] == (0.0, 0.0, 0.0)
    above = estimates.compare(own, random, made_up.SCENARIOS)
    below = estimates.compare(random, own, made_up.SCENARIOS)
    assert above["macro"].verdict == "above"
    assert below["macro"].verdict == "below"
    assert above["K1"].low < above["K1"].difference < above["K1"].high


def test_only_queries_that_both_were_asked_are_compared(systems):
    pooled = estimates.pool(systems["dsmoe"].on_days(0), 5)
    shifted = pooled._replace(recall_Q=pooled.recall_Q + 0.5)
    part = estimates.Pooled(*(column[..., 10:50] for column in shifted))
    assert estimates.compare(part, pooled, made_up.SCENARIOS)["K1"].difference == pytest.approx(0.5)
    other = estimates.pool(systems["dsmoe"].on_days(2), 5)
    with pytest.raises(ValueError, match="got none shared"):
        estimates.compare(pooled, other, made_up.SCENARIOS)


def test_a_scenario_without_queries_has_no_recall_and_is_left_out_of_macro(systems):
    pooled = estimates.pool(systems["dsmoe"].on_days(0), 5)
    found = estimates.estimate(pooled, (*made_up.SCENARIOS, "empty"))
    assert math.isnan(found["empty"].mean)
    without = estimates.estimate(pooled, made_up.SCENARIOS)
    assert found["macro"].mean == without["macro"].mean


def test_every_seed_counts_and_the_spread_is_over_those_of_all_days(tmp_path):
    made_up.save_comparison(tmp_path, days=(0, 2))
    (tmp_path / "dsmoe-seed1-drop2.json").unlink()
    rows = plan.systems_of("fig4", "configs/kuairand.py:sample")
    [own] = finished.load(tmp_path, rows)
    first, later = (estimates.pool(own.on_days(day), 5) for day in (0, 2))
    pooled = estimates.pool(own, 5)
    assert [len(found.recall_NQ) for found in (first, later, pooled)] == [2, 1, 1]
    np.testing.assert_array_equal(
        pooled.recall_Q, np.concatenate([first.recall_NQ.mean(axis=0), later.recall_NQ[0]])
    )
    found = estimates.estimate(pooled, made_up.SCENARIOS)["K1"]
    assert found.mean == pytest.approx(pooled.recall_Q[pooled.scenario_Q == 0].mean())
    assert (math.isnan(found.spread), found.seeds) == (True, 1)
    # No seed was asked all queries.
    (tmp_path / "dsmoe-seed0.json").unlink()
    [own] = finished.load(tmp_path, rows)
    found = estimates.estimate(estimates.pool(own, 5), made_up.SCENARIOS)["macro"]
    assert 0.3 < found.mean < 0.4
    assert (math.isnan(found.spread), found.seeds) == (True, 0)
