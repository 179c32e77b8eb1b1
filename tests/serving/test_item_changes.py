"""Items that come and go while bundles do: what follows a swap, and what comes back."""

import threading

import numpy as np
import pytest

from dsmoe_jax.serving import live
from dsmoe_jax.serving import retriever as retriever_lib
from tests.serving import small_bundle


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Bundles of items 1000 to 1039, of others from 5000 on, and of the first again."""
    folder = tmp_path_factory.mktemp("bundles")
    return [
        small_bundle.write_bundle(folder / name, first_item=first, seed=seed)
        for name, first, seed in (("a", 1000, 0), ("b", 5000, 1), ("c", 1000, 2))
    ]


@pytest.fixture
def service(paths):
    served = small_bundle.serve(paths[0])
    yield served
    served.close()


def send(service, method, route, body=None):
    got = small_bundle.run(service, lambda client: client.request(method, route, json=body))
    assert got.status_code == 200, got.text
    return got.json()


def upsert(service, *items):
    send(service, "POST", "/v1/items", {"items": list(items)})


def remove(service, *raw_ids):
    send(service, "DELETE", "/v1/items", {"item_ids": list(raw_ids)})


def swap(service, path):
    return send(service, "POST", "/v1/bundle", {"path": str(path)})["items"]


def roll_back(service):
    return send(service, "POST", "/v1/bundle/rollback")["items"]


def listed(service):
    """All items that can be retrieved, as the lists of a known and a cold user agree."""
    body = {"users": [{"user_id": 1}, {}], "scenario": "all", "k": 99, "exclude": None}
    lists = [set(one["items"]) for one in send(service, "POST", "/v1/retrieve", body)["lists"]]
    assert all(items == lists[0] for items in lists)
    return lists[0]


def vectors(service, raw_id):
    retriever = service.live.current.retriever
    return [retriever.item_vectors([raw_id], name)[0] for name in retriever.scenarios]


def fresh(path, *items):
    """Vectors of the last of these items, by the bundle's own tower."""
    retriever = retriever_lib.Retriever.load(path)
    if items:
        retriever.upsert_items(list(items))
    return retriever


def test_new_items_follow_into_a_bundle_that_has_no_such_id(service, paths):
    new = {"item_id": 77, "brand": "b2", "price": 13.0, "colours": ["red", "green"]}
    upsert(service, new, {"item_id": 5003, "brand": "b0"}, {"item_id": 1002, "price": 99.0})
    before = vectors(service, 77)
    assert swap(service, paths[1]) == {"upserted": 2, "removed": 0, "left_out": []}
    assert listed(service) == {77, 1002, *range(5000, 5040)}
    expected = fresh(paths[1], new)
    np.testing.assert_array_equal(
        vectors(service, 77), [expected.item_vectors([77], s)[0] for s in expected.scenarios]
    )
    assert (np.array(before) != vectors(service, 77)).any()
    # Where the bundle has the id, its own item counts.
    np.testing.assert_array_equal(
        vectors(service, 5003), [expected.item_vectors([5003], s)[0] for s in expected.scenarios]
    )
    limits = {"brand": ["b2"], "colours": ["green"]}
    body = {"users": [{}], "scenario": "feed", "k": 99, "filter": limits, "allow": [77, 1002]}
    [found] = send(service, "POST", "/v1/retrieve", body)["lists"]
    assert found["items"] == [77]
    # On to a third: of what the second had itself nothing follows, nor of what the third has.
    assert swap(service, paths[2]) == {"upserted": 1, "removed": 0, "left_out": []}
    assert listed(service) == {77, *range(1000, 1040)}
    own = fresh(paths[2])
    np.testing.assert_array_equal(
        vectors(service, 1002), [own.item_vectors([1002], s)[0] for s in own.scenarios]
    )


def test_what_was_removed_stays_removed_until_it_is_upserted(service, paths):
    upsert(service, {"item_id": 77}, {"item_id": 5003}, {"item_id": 5004})
    remove(service, 1002, 1003, 77, 5003)
    upsert(service, {"item_id": 1003, "brand": "b1"})
    assert swap(service, paths[1]) == {"upserted": 1, "removed": 1, "left_out": []}
    assert listed(service) == {1003, *range(5000, 5040)} - {5003}
    # The second bundle never had it, and the third does not bring it back.
    assert swap(service, paths[2]) == {"upserted": 0, "removed": 1, "left_out": []}
    assert listed(service) == {*range(1000, 1040)} - {1002}
    upsert(service, {"item_id": "1002", "brand": "b1"})
    assert swap(service, paths[0]) == {"upserted": 0, "removed": 0, "left_out": []}
    assert listed(service) == {*range(1000, 1040)}


def test_a_rollback_keeps_what_was_and_makes_what_changed_since(service, paths):
    upsert(service, {"item_id": 77, "brand": "b1"}, {"item_id": 1005, "price": 50.0})
    remove(service, 1006, 1007)
    was = vectors(service, 1005)
    swap(service, paths[2])
    upsert(service, {"item_id": 78}, {"item_id": 1007}, {"item_id": 1008, "brand": "b3"})
    remove(service, 77, 1009)
    assert roll_back(service) == {"upserted": 3, "removed": 2, "left_out": []}
    everything = {78, *range(1000, 1040)} - {1006, 1009}
    assert listed(service) == everything
    np.testing.assert_array_equal(vectors(service, 1005), was)
    # What is newer than the bundle counts for its own items too.
    expected = fresh(paths[0], {"item_id": 1008, "brand": "b3"})
    np.testing.assert_array_equal(
        vectors(service, 1008), [expected.item_vectors([1008], s)[0] for s in expected.scenarios]
    )
    remove(service, 1010)
    assert roll_back(service) == {"upserted": 0, "removed": 1, "left_out": []}
    assert listed(service) == everything - {1010}
    # All of it follows to the next bundle.
    assert swap(service, paths[1]) == {"upserted": 3, "removed": 0, "left_out": []}
    assert listed(service) == {78, 1007, 1008, *range(5000, 5040)}


def test_a_bundle_keeps_the_changes_that_were_saved_in_it(service, tmp_path):
    path = small_bundle.write_bundle(tmp_path / "b", first_item=5000, seed=1)
    saved = retriever_lib.Retriever.load(path)
    saved.upsert_items([{"item_id": 77, "brand": "b1"}, {"item_id": 78}])
    saved.remove_items([5001, 78])
    saved.save_changes()
    upsert(service, *({"item_id": n, "brand": "b3", "price": 3.0} for n in (77, 78, 5001)))
    remove(service, 5001)
    upsert(service, {"item_id": 79})
    assert swap(service, path) == {"upserted": 1, "removed": 0, "left_out": []}
    assert listed(service) == {77, 79, *range(5000, 5040)} - {5001}
    np.testing.assert_array_equal(
        vectors(service, 77), [saved.item_vectors([77], s)[0] for s in saved.scenarios]
    )
    # Nothing that the service was told is in the bundle on disk.
    assert set(retriever_lib.Retriever.load(path).item_ids) == set(saved.item_ids)


def test_what_a_bundle_cannot_hold_is_told_and_the_rest_follows(paths, tmp_path, monkeypatch):
    names = np.array(["", *(f"i{n:02}" for n in range(small_bundle.NUM_ITEMS))])
    first = small_bundle.write_bundle(tmp_path / "texts", items_raw_id=names)
    service = small_bundle.serve(first)
    new = [{"item_id": name, "brand": "b1"} for name in ("7", "new", "8", "newer", "9")]
    upsert(service, *new)
    remove(service, "i03")
    items = swap(service, paths[0])
    assert items["upserted"] == 3
    assert items["left_out"] == [
        f"{name}: items: item_id: expected an integer, got '{name}'" for name in ("new", "newer")
    ]
    assert listed(service) == {7, 8, 9, *range(1000, 1040)}
    # They follow to a bundle that can.
    assert swap(service, first) == {"upserted": 5, "removed": 1, "left_out": []}
    assert listed(service) == {"7", "8", "9", "new", "newer", *names[1:]} - {"i03"}
    service.close()


def test_features_that_a_bundle_does_not_have_are_left_out(service, paths, monkeypatch):
    upsert(service, {"item_id": 77, "brand": "b2", "colours": ["red"]})
    open_warm = live.open_warm

    def without_colours(path):
        served = open_warm(path)
        served.retriever.encoder.item_features.remove("colours")
        return served

    monkeypatch.setattr(live, "open_warm", without_colours)
    assert swap(service, paths[1]) == {"upserted": 1, "removed": 0, "left_out": []}
    found = service.live.current.retriever.catalogue
    [row] = found.rows([77], "items")
    assert found.sparse_VF[row, 1] == 3 and not found.bags["colours"][row].any()


def test_a_change_while_a_bundle_is_opened_follows_too(service, paths, monkeypatch):
    begun, release = threading.Event(), threading.Event()
    open_warm = live.open_warm

    def slow(path):
        served = open_warm(path)
        begun.set()
        assert release.wait(20)
        return served

    monkeypatch.setattr(live, "open_warm", slow)
    thread = threading.Thread(target=service.live.swap, args=[paths[1]])
    thread.start()
    assert begun.wait(20)
    upsert(service, {"item_id": 77})
    release.set()
    thread.join()
    assert listed(service) == {77, *range(5000, 5040)}


def test_a_candidate_is_compared_with_the_items_that_would_follow(service, paths):
    upsert(service, {"item_id": 77})
    remove(service, 1002)
    send(service, "POST", "/v1/shadow", {"path": str(paths[2]), "share": 1})
    candidate = service._shadows._shadow.served.retriever
    assert set(candidate.item_ids) == {77, *range(1000, 1040)} - {1002}
