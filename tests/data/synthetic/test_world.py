import hashlib

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.synthetic import world

# Width that no rank of taste, shift and popularity reaches, and creators far exceed.
RANK = 24
TOP = 20


def make(path, **changes):
    values = {
        "num_users": 800,
        "num_items": 600,
        "num_scenarios": 3,
        "num_creators": 150,
        "events_per_user": 16,
        "num_days": 10,
    }
    section = world.SyntheticWorldConfig(**(values | changes))
    section.prepare(str(path))
    store = store_lib.Store.open(path, verify=True)
    return store, world.TrueScores(section.folder(str(path)), store)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """Many scenarios, a scenario shift, no match."""
    return make(tmp_path_factory.mktemp("shifted") / "store", num_scenarios=12, shift_std=1.5)


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    """No scenario shift, a match that matters."""
    return make(tmp_path_factory.mktemp("matched") / "store", shift_std=0.0, match_weight=6.0)


def every(queries, step):
    """A part of the queries: decompositions of small matrices are quick on busy machines."""
    return queries._replace(rows_QC=queries.rows_QC[::step]), range(0, len(queries.rows_QC), step)


def recall(score_QV, queries, ids=None):
    """Mean recall of the TOP unseen items of every query, row by row."""
    found = []
    for q, score_V in zip(ids or range(len(score_QV)), score_QV, strict=True):
        seen = queries.seen.items[queries.seen.indptr[q] : queries.seen.indptr[q + 1]]
        relevant = queries.relevant.items[
            queries.relevant.indptr[q] : queries.relevant.indptr[q + 1]
        ]
        score_V = score_V.copy()
        score_V[seen] = -np.inf
        top = np.argsort(-score_V)[:TOP]
        found.append(np.isin(relevant, top).mean())
    return float(np.mean(found))


def truncated(score_QV, rows_QC, rank):
    out_QV = np.full_like(score_QV, -np.inf)
    out_QV[:, 1:] = world.truncate(score_QV[:, 1:], rows_QC[:, 1], rank)
    return out_QV


def popularity(store):
    count_V = np.bincount(store.train_NC[:, store.columns["item"]], minlength=store.spec.num_items)
    return np.where(np.arange(len(count_V)) > 0, count_V, -1.0)


def test_shares_of_scenarios_are_zipf(shifted):
    store, _ = shifted
    train = store.manifest["counts"]["train"]
    assert list(train) == [str(s) for s in range(12)]
    share = np.array(list(train.values())) / sum(train.values())
    expected = (1 / np.arange(1, 13)) / (1 / np.arange(1, 13)).sum()
    np.testing.assert_allclose(share, expected, atol=0.015)


def test_store_says_that_it_is_synthetic(shifted):
    store, _ = shifted
    assert store.manifest["dataset"] == "planted world (synthetic)"
    assert (store.root.parent / "store.synthetic" / "SYNTHETIC.md").is_file()


def test_true_scores_beat_popularity_by_far(shifted, matched):
    for store, truth in (shifted, matched):
        queries = store.queries("test")
        score_QV = truth.scores(queries.rows_QC)
        ceiling = recall(score_QV, queries)
        floor = recall(np.broadcast_to(popularity(store), score_QV.shape), queries)
        assert ceiling > 1.7 * floor
        assert 0.1 < ceiling < 0.95


def test_without_the_shift_the_true_scores_are_worse(shifted):
    store, truth = shifted
    queries = store.queries("test")
    p = truth.preferences
    score_QV = truth.scores(queries.rows_QC)
    truth.preferences = p._replace(mixing_SRR=np.zeros_like(p.mixing_SRR))
    unshifted_QV = truth.scores(queries.rows_QC)
    truth.preferences = p
    assert recall(score_QV, queries) > recall(unshifted_QV, queries) + 0.05


def test_scores_without_match_have_the_rank_of_taste_shift_and_popularity(shifted):
    store, truth = shifted
    queries, ids = every(store.queries("test"), 8)
    score_QV = truth.scores(queries.rows_QC)
    # Within a scenario: eight tastes, four contexts, one popularity.
    first = score_QV[queries.rows_QC[:, 1] == 0, 1:].astype(np.float64)
    values = np.linalg.svd(first, compute_uv=False)
    assert values[12] > 1e-3 * values[0] and values[13] < 1e-5 * values[0]
    kept = recall(truncated(score_QV, queries.rows_QC, 13), queries, ids)
    assert kept == pytest.approx(recall(score_QV, queries, ids), abs=1e-3)


def test_truncation_loses_the_match(matched):
    store, truth = matched
    queries, ids = every(store.queries("test"), 3)
    score_QV = truth.scores(queries.rows_QC)
    ceiling = recall(score_QV, queries, ids)
    kept = recall(truncated(score_QV, queries.rows_QC, RANK), queries, ids)
    without = recall(_without_match(truth, queries.rows_QC), queries, ids)
    assert ceiling > kept + 0.05
    assert ceiling > without + 0.15


def _without_match(truth, rows_QC):
    p = truth.preferences
    truth.preferences = p._replace(match_weight=0.0)
    score_QV = truth.scores(rows_QC)
    truth.preferences = p
    return score_QV


def test_recent_creators_are_those_of_the_last_events_before_the_cut(matched):
    store, truth = matched
    rows_QC = store.queries("validation").rows_QC[::37]
    bonus_QV = truth.scores(rows_QC)[:, 1:] - _without_match(truth, rows_QC)[:, 1:]
    raw = store.root.parent / "store.synthetic"
    log = pl.read_parquet(raw / "log.parquet")
    creator = dict(pl.read_parquet(raw / "items.parquet").select("item_id", "creator").iter_rows())
    c = store.columns
    for row, bonus_V in zip(rows_QC, bonus_QV, strict=True):
        user = int(store.users_raw_id[row[c["user"]]])
        before = log.filter((pl.col("user_id") == user) & (pl.col("time") < int(row[c["time_s"]])))
        recent = {creator[i] for i in before.sort("time")["item_id"][-10:]}
        expected = [creator[int(i)] in recent for i in store.items_raw_id[1:]]
        np.testing.assert_array_equal(bonus_V > 3.0, expected)


def test_creator_history_tells_the_creators_of_the_history(matched):
    store, _ = matched
    c = store.columns
    items_E, creators_E = (store.sequences[name][0] for name in ("history", "creator_history"))
    for rows_XC in (store.train_NC[::50], store.queries("test").rows_QC[::50]):
        for row in rows_XC:
            item_L = items_E[row[c["history_start"]] : row[c["history_stop"]], 0]
            start, stop = row[c["creator_history_start"]], row[c["creator_history_stop"]]
            creator_L = store.items_sparse[item_L, 1]
            np.testing.assert_array_equal(creators_E[start:stop, 0], creator_L)
    assert [f.name for f in store.spec.item_sparse] == ["item_id", "creator"]


def test_a_users_events_never_repeat_an_item_nor_share_a_second(matched):
    store, _ = matched
    log = pl.read_parquet(store.root.parent / "store.synthetic" / "log.parquet")
    assert log.select(pl.struct("user_id", "item_id").n_unique()).item() == log.height
    assert log.select(pl.struct("user_id", "time").n_unique()).item() == log.height
    per_user = log.group_by("user_id").len()["len"]
    assert (per_user.min(), per_user.max()) == (8, 24)


def test_seed_decides_every_byte(tmp_path):
    def digests(name, seed):
        section = world.SyntheticWorldConfig(
            num_users=200, num_items=150, num_creators=40, num_scenarios=2, events_per_user=10,
            num_days=8, generator_seed=seed,
        )  # fmt: skip
        section.prepare(str(tmp_path / name))
        folder = section.folder(str(tmp_path / name))
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    a, b, c = digests("a", 1), digests("b", 1), digests("c", 2)
    assert a == b
    assert all(a[name] != c[name] for name in ("log.parquet", "users.parquet", "items.parquet"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"num_items": 20}, r"data\.num_items: expected at least 150, got 20"),
        ({"num_days": 4}, r"data\.num_days: expected at least 5, got 4"),
        ({"recent": 0}, r"data\.recent: expected at least 1, got 0"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(fields, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        make(tmp_path / "store", **fields)
    assert list(tmp_path.iterdir()) == []


def test_true_scores_need_a_generated_folder(tmp_path, matched):
    with pytest.raises(ValueError, match=r"truth\.npz: expected the file of a generated world"):
        world.TrueScores(tmp_path, matched[0])


def test_truncation_is_the_best_of_its_rank_in_every_scenario():
    rng = np.random.default_rng(0)
    scenario_Q = rng.permutation(np.repeat([0, 2], [30, 8]))
    score_QV = rng.standard_normal((38, 15))
    out_QV = world.truncate(score_QV, scenario_Q, 3)
    for scenario in (0, 2):
        rows = scenario_Q == scenario
        left, values, right = np.linalg.svd(score_QV[rows], full_matrices=False)
        expected = (left[:, :3] * values[:3]) @ right[:3]
        np.testing.assert_allclose(out_QV[rows], expected, atol=1e-10)
    whole = world.truncate(score_QV, scenario_Q, 50)
    np.testing.assert_allclose(whole, score_QV, atol=1e-10)
