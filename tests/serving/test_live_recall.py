"""Live recall: measured at changes and every so often, of the items as they are."""

import threading

import numpy as np
import pytest

from dsmoe_jax.retrieval import delta, host
from dsmoe_jax.serving import live, live_recall, service_metrics
from dsmoe_jax.serving import retriever as retriever_lib
from tests.serving import small_bundle

K = 10


class Half:
    """Finds every other of the nearest items."""

    def __init__(self, item_VD):
        self.exact = host.HostIndex(item_VD)
        self.num_rows, self.num_candidates = self.exact.num_rows, self.exact.num_candidates

    def search(self, query_QMD, k, **filters):
        score_QT, item_QT = self.exact.search(query_QMD, 2 * k, **filters)
        return score_QT[:, ::2], item_QT[:, ::2]


@pytest.fixture
def retriever(tmp_path):
    return retriever_lib.Retriever.load(small_bundle.write_bundle(tmp_path / "a"))


def lose_half(retriever, scenario):
    """Puts an index that misses items below the changes of a scenario."""
    found, s = retriever.catalogue, retriever.scenarios.index(scenario)
    indexes = list(found.indexes)
    item_VD = retriever.bundle.load("item_vectors")[s]
    indexes[s] = delta.DeltaIndex(Half(item_VD), item_VD)
    object.__setattr__(found, "indexes", tuple(indexes))


def test_an_index_that_misses_items_is_seen(retriever):
    assert live_recall.measure(retriever, K) == dict.fromkeys(small_bundle.SCENARIOS, 1.0)
    lose_half(retriever, "search")
    assert live_recall.measure(retriever, K) == {"feed": 1.0, "search": 0.5, "deals": 1.0}


def test_both_sides_see_the_items_as_they_are(retriever):
    lose_half(retriever, "search")
    # Removed items are in neither list: of the 20 that are left, the index finds the half.
    retriever.remove_items(list(range(1000, 1020)))
    assert live_recall.measure(retriever, K)["search"] == 0.5
    # All that is left are new items, which lie over the index and are searched exactly.
    retriever.upsert_items([{"item_id": n, "brand": "b1", "price": float(n)} for n in range(20)])
    retriever.remove_items(list(range(1020, 1040)))
    assert live_recall.measure(retriever, K)["search"] == 1.0
    retriever.remove_items(list(range(20)))
    assert live_recall.measure(retriever, K)["search"] == 1.0


def test_new_items_before_the_others_count(retriever):
    lose_half(retriever, "search")
    retriever.upsert_items([{"item_id": 7, "brand": "b1"}])
    [index] = [retriever.searcher("search")]
    users = retriever.encoder.known_users()
    query_QMD = retriever.user_vectors(users, "search")
    row_V = np.arange(index.num_rows)
    exact = host.HostIndex(index.vectors(row_V))
    expected = [
        np.isin(exact_T, got_T).mean()
        for exact_T, got_T in zip(
            exact.search(query_QMD, K)[1], index.search(query_QMD, K)[1], strict=True
        )
    ]
    assert 0.5 < np.mean(expected) < 1.0
    assert live_recall.measure(retriever, K)["search"] == pytest.approx(np.mean(expected))


def read(service, name):
    text = service.metrics.text().decode()
    return [line for line in text.splitlines() if line.startswith(name + "{")]


@pytest.fixture
def measured(monkeypatch):
    """Waits until what answers was measured once more, or so many times from now on."""
    happened = threading.Semaphore(0)
    in_use = service_metrics.Metrics.in_use

    def tell(*arguments):
        in_use(*arguments)
        happened.release()

    monkeypatch.setattr(service_metrics.Metrics, "in_use", tell)

    def wait(from_now_on=0):
        while from_now_on and happened.acquire(blocking=False):
            pass
        for _ in range(from_now_on or 1):
            assert happened.acquire(timeout=120)

    return wait


def test_it_is_measured_again_without_a_change(tmp_path, measured):
    service = small_bundle.serve(small_bundle.write_bundle(tmp_path / "a"), recall_s=0.01)
    measured(from_now_on=2)
    # As if the index had begun to miss items by itself.
    lose_half(service.live.current.retriever, "deals")
    # The first of two may have begun before.
    measured(from_now_on=2)
    assert 'dsmoe_live_recall{scenario="feed"} 1.0' in read(service, "dsmoe_live_recall")
    [deals] = [line for line in read(service, "dsmoe_live_recall") if "deals" in line]
    assert float(deals.split()[1]) < 1.0
    timer = service._recall._timer
    service.close()
    assert not timer.is_alive()


def test_a_swap_leaves_nothing_of_the_bundle_before(tmp_path, measured):
    paths = [small_bundle.write_bundle(tmp_path / name, seed=n) for n, name in enumerate("ab")]
    service = small_bundle.serve(paths[0], recall_s=0.0)
    assert not service._recall._timer.is_alive()
    measured()
    small_bundle.run(
        service, lambda client: client.post("/v1/bundle", json={"path": str(paths[1])})
    )
    measured()
    digest = retriever_lib.Retriever.load(paths[1]).bundle.digest
    assert read(service, "dsmoe_bundle") == [f'dsmoe_bundle{{digest="{digest}"}} 1.0']
    assert len(read(service, "dsmoe_live_recall")) == 3
    service.close()


def test_a_measurement_that_fails_is_told_and_the_next_is_made(
    tmp_path, measured, monkeypatch, caplog
):
    served = live.open_warm(small_bundle.write_bundle(tmp_path / "a"))
    measure, failures = live_recall.measure, [ZeroDivisionError("a fault\nof ours")]

    def fail(retriever):
        if failures:
            raise failures.pop()
        return measure(retriever)

    monkeypatch.setattr(live_recall, "measure", fail)
    watch = live_recall.Watch(lambda: served, service_metrics.Metrics(), 0.01)
    measured()
    watch.close()
    assert [record.getMessage() for record in caplog.records] == [
        "no live recall: ZeroDivisionError: a fault of ours"
    ]
