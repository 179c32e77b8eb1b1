"""Evaluator, retriever, bulk, service and ONNX list the same items for every packaged test query.

Every query of the packaged rows is asked in each way, and lists are compared as ids, rank by rank.
What serves shares one arithmetic, so its lists are equal. The evaluator and ONNX sum in another
order: there two items may change places where their scores are equal but for rounding, and nothing
else.

Letters: Q queries, T retrieved list length, D a vector, X places in lists.
"""

from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnxruntime
import polars as pl
import pytest

import dsmoe_jax
from dsmoe_jax.evaluation import protocol
from dsmoe_jax.serving import bulk, onnx_feeds, onnx_graph, retriever, wire
from tests.serving import small_bundle

NUM_QUERIES, K = 7_451, 100
# One epoch of large batches: a model that is not good, but whose scores are no random ones.
FIELDS = {"train.max_epochs": 1, "train.batch_size": 4096, "eval.references": False}
# Scores closer than this, relative to the product of the norms, are equal but for rounding.
TIE = 1e-6
# Most lists in which rounding may show: some ten of all do.
MOST_TIED = 75


class Asked(NamedTuple):
    """The packaged test queries, and how the evaluator answers them."""

    model: dsmoe_jax.Model
    users: list[Any]  # Raw ids by query
    scenario_Q: np.ndarray
    item_QT: np.ndarray  # Raw ids of the evaluator's lists


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    experiment = dsmoe_jax.load_config("kuairand:sample,fism", **FIELDS)
    model = dsmoe_jax.train(experiment, tmp_path_factory.mktemp("run"), mode="student")
    model.save()
    found = {}
    cut_lists = protocol.Protocol.cut_lists

    def keep(rules, query_B, *lists):
        cut = cut_lists(rules, query_B, *lists)
        found.update(zip(query_B.tolist(), cut[1], strict=True))
        return cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol.Protocol, "cut_lists", keep)
        model.evaluate()
    store = model._stages.store
    rows_QC, raw = np.asarray(store.queries("test").rows_QC), np.asarray(store.items_raw_id)
    assert sorted(found) == list(range(len(rows_QC))) and len(rows_QC) == NUM_QUERIES
    return Asked(
        model,
        np.asarray(store.users_raw_id)[rows_QC[:, store.columns["user"]]].tolist(),
        rows_QC[:, store.columns["scenario"]],
        raw[np.stack([found[q] for q in range(NUM_QUERIES)])],
    )


@pytest.fixture(scope="module")
def served(asked):
    return asked.model.retriever


@pytest.fixture(scope="module")
def retrieved(asked, served):
    """The retriever's lists [Q, T], as raw ids."""
    return ask_by_scenario(asked, lambda users, name: ask_retriever(served, users, name))


def ask_by_scenario(asked, ask):
    """Lists of all queries, of which `ask(users, scenario)` answers those of one scenario."""
    item_QT = np.zeros((NUM_QUERIES, K), np.int64)
    for s, name in enumerate(asked.model.retriever.scenarios):
        chosen = np.flatnonzero(asked.scenario_Q == s)
        item_QT[chosen] = ask([asked.users[q] for q in chosen], name)
    return item_QT


def ask_retriever(served, users, name):
    frame = served.recommend(users, name, K, exclude=served.usual_exclude)
    return frame["item_id"].to_numpy().reshape(len(users), K)


def test_the_retrievers_lists_are_the_evaluators_but_for_ties(asked, served, retrieved):
    assert_equal_but_for_ties(asked, served, asked.item_QT, retrieved)


def test_bulk_lists_are_the_retrievers(asked, served, retrieved, tmp_path):
    users = list(dict.fromkeys(asked.users))
    pl.DataFrame({"user_id": users}).write_parquet(tmp_path / "users.parquet")
    out = tmp_path / "lists.parquet"
    bulk.recommend_file(
        served, tmp_path / "users.parquet", out, k=K, exclude=served.usual_exclude, block_users=999
    )
    item_USK = pl.read_parquet(out)["item_id"].to_numpy().reshape(len(users), -1, K)
    row_of = {user: row for row, user in enumerate(users)}
    item_QT = item_USK[[row_of[user] for user in asked.users], asked.scenario_Q]
    np.testing.assert_array_equal(item_QT, retrieved)


def test_the_services_lists_are_the_retrievers(asked, served, retrieved):
    service = small_bundle.serve(served.bundle.root)
    decode = msgspec.json.Decoder(wire.Reply).decode

    async def work(client):
        found = {}
        for s, name in enumerate(served.scenarios):
            chosen = np.flatnonzero(asked.scenario_Q == s)
            for part in np.array_split(chosen, -(-len(chosen) // 500)):
                users = [{"user_id": asked.users[q]} for q in part]
                body = {"users": users, "scenario": name, "k": K}
                answer = await client.post("/v1/retrieve", json=body)
                assert answer.status_code == 200, answer.text
                for q, entry in zip(part, decode(answer.content).lists, strict=True):
                    assert (entry.user_id, entry.scenario) == (asked.users[q], name)
                    found[int(q)] = entry.items
        return found

    try:
        found = small_bundle.run(service, work)
    finally:
        service.close()
    np.testing.assert_array_equal([found[q] for q in range(NUM_QUERIES)], retrieved)


def test_onnx_lists_are_the_retrievers_but_for_ties(asked, served, retrieved, tmp_path):
    path = onnx_graph.write_onnx(served.bundle, tmp_path / "sample.onnx", k=K)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def ask(users, name):
        parts = []
        for start in range(0, len(users), 256):
            columns = {"user_id": users[start : start + 256]}
            fed = onnx_feeds.feeds(served.bundle, columns, name, encoder=served.encoder)
            parts.append(session.run(["item_id"], fed)[0])
        return np.concatenate(parts)

    assert_equal_but_for_ties(asked, served, ask_by_scenario(asked, ask), retrieved)


def test_a_wrong_list_is_no_tie(asked, served, retrieved):
    wrong = retrieved.copy()
    wrong[17, [3, 40]] = wrong[17, [40, 3]]
    with pytest.raises(AssertionError, match="query 17"):
        assert_equal_but_for_ties(asked, served, wrong, retrieved)


def assert_equal_but_for_ties(
    asked: Asked, served: retriever.Retriever, one_QT: np.ndarray, other_QT: np.ndarray
) -> None:
    """Compares lists rank by rank; few may differ, by items of equal scores that changed places."""
    tied = np.flatnonzero((one_QT != other_QT).any(axis=1))
    for q in tied.tolist():
        name = served.scenarios[asked.scenario_Q[q]]
        vector_MD = served.user_vectors([asked.users[q]], name)[0].astype(np.float64)
        at_X = np.flatnonzero(one_QT[q] != other_QT[q])
        one_XD, other_XD = (
            served.item_vectors(item_QT[q, at_X].tolist(), name).astype(np.float64)
            for item_QT in (one_QT, other_QT)
        )
        apart_X = (one_XD @ vector_MD.T).max(axis=1) - (other_XD @ vector_MD.T).max(axis=1)
        norm_X = np.linalg.norm(one_XD, axis=1) * np.linalg.norm(vector_MD, axis=1).max()
        gap = float((np.abs(apart_X) / norm_X).max())
        assert len(set(one_QT[q].tolist())) == K, f"query {q}: an item twice"
        assert gap <= TIE, f"query {q}: ranks {at_X} differ by {gap:.3g} of the norms"
    assert len(tied) <= MOST_TIED, f"{len(tied)} lists differ in ties"
