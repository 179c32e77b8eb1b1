"""Which queries are asked and how lists become an evaluation."""

import dataclasses
import math

import numpy as np
import pytest

from dsmoe_jax.config import schema
from dsmoe_jax.evaluation import metrics, protocol
from tests import clicks, tiny

CONFIG = schema.EvalConfig(k=(2, 5))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("rules") / "store")


def relevant_items(store, split, query):
    table = store.queries(split).relevant
    return set(table.items[table.indptr[query] : table.indptr[query + 1]].tolist())


def seen_items(store, split, query):
    table = store.queries(split).seen
    return set(table.items[table.indptr[query] : table.indptr[query + 1]].tolist())


def draw_scores(store, split, seed=0):
    num_queries = len(store.queries(split).rows_QC)
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_queries, store.spec.num_items)).astype(np.float32)


def judge_scores(store, score_QV, split="test", config=CONFIG, batch=7):
    rules = protocol.Protocol(store, config, split)
    query_Q = np.arange(len(score_QV))
    for start in range(0, len(query_Q), batch):
        ids = query_Q[start : start + batch]
        rules.add_scores(ids, score_QV[ids].copy())
    return rules.finish()


@pytest.mark.parametrize("remove_seen", ["positives", "none"])
def test_evaluation_equals_a_loop_over_the_definition(store, remove_seen):
    score_QV = draw_scores(store, "test")
    config = dataclasses.replace(CONFIG, remove_seen=remove_seen)
    evaluation = judge_scores(store, score_QV, config=config)
    for query in range(len(score_QV)):
        seen = seen_items(store, "test", query) if remove_seen == "positives" else set()
        candidates = [item for item in range(1, store.spec.num_items) if item not in seen]
        candidates.sort(key=lambda item, query=query: -score_QV[query, item])
        relevant = relevant_items(store, "test", query)
        for k in CONFIG.k:
            expected = len(set(candidates[:k]) & relevant) / len(relevant)
            # Divided once, so exact.
            assert evaluation.recall[k][query] == expected
            assert evaluation.hit_rate[k][query] == bool(expected)
        assert evaluation.relevant_Q[query] == len(relevant)
    assert evaluation.remove_seen == remove_seen
    assert evaluation.num_candidates == tiny.NUM_ITEMS


@pytest.mark.parametrize(
    ("rule", "removed", "rank", "said"),
    [
        ("none", [], 6, "seen items kept"),
        ("positives", [1, 3], 4, "seen items removed"),
        ("shown", [1, 2, 3, 4, 5], 1, "all items shown removed"),
    ],
)
def test_literal_lists_under_every_rule(tmp_path, rule, removed, rank, said):
    log = [(1, 0, 1, 1), (2, 0, 7, 1), (1, 0, 3, 2), (2, 0, 4, 2), (1, 0, 6, 3), (1, 0, 7, 3)]
    store = clicks.write_store(
        tmp_path / "store",
        log,
        earlier=[(1, 5), (2, 6)],
        # The last one is of the test day.
        shown=[(1, 0, 4, 1, 9), (1, None, 4, 2, 9), (1, 0, 7, 3, 9)],
        earlier_shown=[(1, 2), (1, 5)],
        users=2,
        items=7,
        scenarios=("A",),
    )
    config = schema.EvalConfig(k=(1, 6), mrr_depth=7, remove_seen=rule)
    table = store.queries("test")
    found = protocol.read_removed(store, table, rule)
    assert (found.items.tolist(), found.indptr.tolist()) == (removed, [0, len(removed)])
    score_QV = -np.arange(8, dtype=np.float32)[None]
    score_QV[0, 0] = -np.inf
    evaluation = judge_scores(store, score_QV, config=config)
    assert evaluation.mrr_Q.tolist() == [1 / rank]
    assert evaluation.describe().endswith(said)
    rules = protocol.Protocol(store, config, "test")
    T = rules.list_length(np.arange(1))
    rules.add_lists(np.arange(1), score_QV[:, 1 : T + 1], np.arange(1, T + 1)[None])
    by_list = rules.finish()
    assert by_list.mrr_Q.tolist() == [1 / rank]
    assert by_list.recall[6].tolist() == evaluation.recall[6].tolist()


def test_what_was_shown_is_the_history_where_there_are_no_exposures(tmp_path):
    log = [(1, 0, 1, 1), (1, 0, 3, 2), (1, 0, 6, 3)]
    store = clicks.write_store(
        tmp_path / "store", log, earlier=[(1, 5)], users=1, items=7, scenarios=("A",)
    )
    found = protocol.read_removed(store, store.queries("test"), "shown")
    assert found.items.tolist() == [1, 3, 5]


def test_another_rule_is_refused(store):
    with pytest.raises(ValueError, match=r"eval.remove_seen: expected one of .*, got 'all'"):
        protocol.Protocol(store, dataclasses.replace(CONFIG, remove_seen="all"), "test")


def test_reciprocal_rank_looks_further_than_the_cut_offs(store):
    score_QV = draw_scores(store, "test")
    plain = judge_scores(store, score_QV)
    assert plain.mrr_Q is None and "mrr" not in plain.summarise()["macro"]
    config = dataclasses.replace(CONFIG, mrr_depth=9)
    evaluation = judge_scores(store, score_QV, config=config)
    beyond = 0
    for query in range(len(score_QV)):
        seen, relevant = seen_items(store, "test", query), relevant_items(store, "test", query)
        order = [item for item in np.argsort(-score_QV[query]) if item and item not in seen]
        rank = 1 + min(order.index(item) for item in relevant)
        beyond += rank > 9
        assert evaluation.mrr_Q[query] == pytest.approx(1 / min(rank, 10))
    assert 0 < beyond < len(score_QV)
    np.testing.assert_array_equal(evaluation.recall[5], plain.recall[5])
    summary = evaluation.summarise()
    mean_S = [evaluation.mrr_Q[evaluation.scenario_Q == s].mean() for s in range(3)]
    assert summary["scenarios"]["C"]["mrr"] == pytest.approx(mean_S[2])
    rules = protocol.Protocol(store, config, "test")
    assert rules.list_length(np.arange(3)) >= 9


def test_lists_with_room_for_seen_items_give_the_same_as_scores(store):
    score_QV = draw_scores(store, "test")
    score_QV[:, 0] = -np.inf
    by_score = judge_scores(store, score_QV)
    rules = protocol.Protocol(store, CONFIG, "test")
    for _, ids in rules.group_by_scenario(np.arange(len(score_QV)), 16):
        T = rules.list_length(ids)
        item_BT = np.argsort(-score_QV[ids], axis=1)[:, :T].astype(np.int32)
        score_BT = np.take_along_axis(score_QV[ids], item_BT, axis=1)
        padding = ((0, 16 - len(ids)), (0, 0))  # rows past the batch are ignored
        rules.add_lists(ids, np.pad(score_BT, padding), np.pad(item_BT, padding))
    by_list = rules.finish()
    np.testing.assert_array_equal(by_list.query_Q, by_score.query_Q)
    for k in CONFIG.k:
        np.testing.assert_array_equal(by_list.recall[k], by_score.recall[k])
        np.testing.assert_array_equal(by_list.ndcg[k], by_score.ndcg[k])


def test_recall_is_invariant_to_permuting_candidates(store, monkeypatch):
    score_QV = draw_scores(store, "test")
    before = judge_scores(store, score_QV)
    permutation = np.concatenate([[0], 1 + np.random.default_rng(1).permutation(tiny.NUM_ITEMS)])
    table = store.queries("test")
    inverse = np.argsort(permutation).astype(np.int32)
    renamed = table._replace(
        relevant=table.relevant._replace(items=inverse[table.relevant.items]),
        seen=table.seen._replace(items=inverse[table.seen.items]),
    )
    monkeypatch.setattr(store, "queries", lambda split: renamed)
    after = judge_scores(store, np.ascontiguousarray(score_QV[:, permutation]))
    for k in CONFIG.k:
        np.testing.assert_array_equal(before.recall[k], after.recall[k])


def test_list_length_leaves_room_for_the_longest_seen_set_only_when_removing(store):
    table = store.queries("test")
    ids = np.arange(len(table.rows_QC))
    longest = int(np.diff(table.seen.indptr).max())
    assert longest > 5
    removing = protocol.Protocol(store, CONFIG, "test").list_length(ids)
    assert 5 + longest <= removing <= max(5 + 2 * longest, 5 + 16)
    keeping = dataclasses.replace(CONFIG, remove_seen="none")
    assert protocol.Protocol(store, keeping, "test").list_length(ids) == 5


def test_groups_hold_each_query_once_and_one_scenario_each(store):
    rules = protocol.Protocol(store, CONFIG, "test")
    scenario_Q = store.queries("test").rows_QC[:, store.columns["scenario"]]
    query_Q = np.arange(len(scenario_Q))
    groups = list(rules.group_by_scenario(query_Q, 6))
    assert sorted(np.concatenate([ids for _, ids in groups]).tolist()) == query_Q.tolist()
    for scenario, ids in groups:
        assert len(ids) <= 6
        assert set(scenario_Q[ids]) == {scenario}
    assert [scenario for scenario, _ in groups] == sorted(scenario for scenario, _ in groups)


def test_sample_is_fixed_bounded_per_scenario_and_nested(store):
    scenario_Q = store.queries("test").rows_QC[:, store.columns["scenario"]]
    small = protocol.sample_queries(store, "test", 3, seed=1)
    large = protocol.sample_queries(store, "test", 6, seed=1)
    everything = protocol.sample_queries(store, "test", None, seed=1)
    np.testing.assert_array_equal(small, protocol.sample_queries(store, "test", 3, seed=1))
    assert small.tolist() != protocol.sample_queries(store, "test", 3, seed=2).tolist()
    assert np.bincount(scenario_Q[small]).max() == 3
    assert set(small) <= set(large) <= set(everything)
    assert everything.tolist() == list(range(len(scenario_Q)))


def test_summary_has_the_schema_and_the_means_of_its_queries(store):
    evaluation = judge_scores(store, draw_scores(store, "test"))
    summary = evaluation.summarise()
    assert set(summary) == {"scenarios", "macro", "cold"}
    assert list(summary["scenarios"]) == list(tiny.SCENARIOS)
    row = summary["scenarios"]["B"]
    mine = evaluation.scenario_Q == 1
    assert row["queries"] == mine.sum()
    assert row["recall@5"] == pytest.approx(evaluation.recall[5][mine].mean())
    assert row["recall@5_se"] == pytest.approx(metrics.estimate(evaluation.recall[5][mine]).error)
    assert row["hit_rate@2"] == pytest.approx(evaluation.hit_rate[2][mine].mean())
    assert row["ndcg@2"] == pytest.approx(evaluation.ndcg[2][mine].mean())
    count = store.manifest["counts"]["train"]
    assert row["share"] == pytest.approx(count["B"] / sum(count.values()))
    assert summary["macro"]["recall@5"] == pytest.approx(
        np.mean([summary["scenarios"][name]["recall@5"] for name in tiny.SCENARIOS])
    )
    assert "log_loss" not in row


def test_cold_users_are_summarised_by_themselves_and_stay_in_the_whole(store, monkeypatch):
    table = store.queries("test")
    cold_Q = np.arange(len(table.cold_Q)) % 4 == 0
    monkeypatch.setattr(store, "queries", lambda split: table._replace(cold_Q=cold_Q))
    evaluation = judge_scores(store, draw_scores(store, "test"))
    summary = evaluation.summarise()
    mine = cold_Q & (evaluation.scenario_Q == 0)
    assert summary["cold"]["scenarios"]["A"]["queries"] == mine.sum() > 0
    assert summary["cold"]["scenarios"]["A"]["recall@5"] == pytest.approx(
        evaluation.recall[5][mine].mean()
    )
    assert sum(row["queries"] for row in summary["scenarios"].values()) == len(cold_Q)


def test_a_scenario_without_queries_is_nan_and_leaves_macro_alone(store):
    evaluation = judge_scores(store, draw_scores(store, "test"))
    kept = evaluation.restrict(evaluation.query_Q[evaluation.scenario_Q != 2])
    summary = kept.summarise()
    assert summary["scenarios"]["C"]["queries"] == 0
    assert math.isnan(summary["scenarios"]["C"]["recall@5"])
    assert summary["macro"]["recall@5"] == pytest.approx(
        np.mean([summary["scenarios"][name]["recall@5"] for name in "AB"])
    )


def test_restricting_to_a_query_that_was_not_evaluated_is_refused(store):
    evaluation = judge_scores(store, draw_scores(store, "test"))
    half = evaluation.restrict(evaluation.query_Q[::2])
    with pytest.raises(ValueError, match="query 1 of test: expected an evaluated query"):
        half.restrict(np.array([0, 1]))


def test_description_names_candidates_queries_cuts_and_rule(store):
    evaluation = judge_scores(store, draw_scores(store, "test"))
    line = evaluation.describe()
    assert "\n" not in line
    for part in ("41 candidates", f"{len(evaluation.query_Q)} queries", "k = 2, 5", "seen items r"):
        assert part in line


def test_log_loss_counts_each_positive_with_its_negatives(store):
    num_queries = len(store.queries("validation").rows_QC)
    logit_QV = np.full((num_queries, store.spec.num_items), -2.0, np.float32)
    rules = protocol.Protocol(store, CONFIG, "validation")
    ids = np.arange(num_queries)
    rules.add_log_loss(ids, logit_QV, num_negatives=4, seed=0)
    rules.add_scores(ids, logit_QV)
    evaluation = rules.finish()
    expected = (math.log1p(math.exp(2)) + 4 * math.log1p(math.exp(-2))) / 5
    np.testing.assert_allclose(evaluation.log_loss_Q, expected, rtol=1e-6)
    assert evaluation.summarise()["scenarios"]["A"]["log_loss"] == pytest.approx(expected)


def test_log_loss_never_takes_the_positive_as_its_negative_and_ignores_batching(store):
    num_queries = len(store.queries("validation").rows_QC)
    logit_QV = np.full((num_queries, store.spec.num_items), -30.0, np.float32)
    single = []
    for query in range(num_queries):
        relevant = relevant_items(store, "validation", query)
        if len(relevant) == 1:
            single.append(query)
            logit_QV[query, list(relevant)] = 30.0
    whole = protocol.Protocol(store, CONFIG, "validation")
    whole.add_log_loss(np.arange(num_queries), logit_QV, num_negatives=50, seed=3)
    # A query with one relevant item is predicted perfectly unless that item is drawn.
    assert len(single) > 10
    assert whole._losses[0][single].max() < 1e-9
    parts = protocol.Protocol(store, CONFIG, "validation")
    for start in range(0, num_queries, 5):
        ids = np.arange(start, min(start + 5, num_queries))
        parts.add_log_loss(ids, logit_QV[ids], num_negatives=50, seed=3)
    np.testing.assert_allclose(np.concatenate(parts._losses), whole._losses[0])


def test_comparison_is_paired_and_needs_the_same_queries(store):
    first = judge_scores(store, draw_scores(store, "test", seed=0))
    second = judge_scores(store, draw_scores(store, "test", seed=1))
    compared = protocol.compare(first, second, 5)
    mine = first.scenario_Q == 0
    difference = first.recall[5][mine].mean() - second.recall[5][mine].mean()
    found = compared[tiny.SCENARIOS[0]]
    assert found.difference == pytest.approx(difference)
    assert found.low <= difference <= found.high
    with pytest.raises(ValueError, match="expected the same queries"):
        protocol.compare(first, second.restrict(second.query_Q[1:]), 5)


def test_nothing_to_evaluate_is_refused(store):
    with pytest.raises(ValueError, match="expected at least one query"):
        protocol.Protocol(store, CONFIG, "test").finish()
