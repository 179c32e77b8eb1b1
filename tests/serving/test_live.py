"""Changes of what answers: swap, roll-back and shadow mode, under load."""

import asyncio
import shutil
import threading
import time

import pytest

from dsmoe_jax.serving import lists as lists_lib
from dsmoe_jax.serving import live, shadow
from dsmoe_jax.serving import retriever as retriever_lib
from tests.serving import small_bundle

CLIENTS = 8


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Two bundles without a common item."""
    folder = tmp_path_factory.mktemp("bundles")
    return [
        small_bundle.write_bundle(folder / name, first_item=first, seed=seed)
        for name, first, seed in (("a", 1000, 0), ("b", 5000, 1))
    ]


@pytest.fixture
def service(paths):
    served = small_bundle.serve(paths[0])
    yield served
    served.close()


def send(service, method, route, body=None):
    return small_bundle.run(service, lambda client: client.request(method, route, json=body))


def digests(paths):
    return [retriever_lib.Retriever.load(path).bundle.digest for path in paths]


def test_a_swap_under_load_loses_nothing_and_mixes_nothing(service, paths):
    first, second = digests(paths)
    answers, is_over = [], False

    async def ask(client, number):
        n = 0
        while not is_over:
            n += 1
            users = [{"user_id": (number + n) % 30 + 1}, {"history": [1001, 5001]}, {}]
            body = {"users": users, "scenario": "all" if n % 2 else "feed", "k": 6}
            answers.append(await client.post("/v1/retrieve", json=body))

    async def change(client):
        nonlocal is_over
        changes = []
        for turn in range(6):
            route = "/v1/bundle/rollback" if turn % 3 == 2 else "/v1/bundle"
            body = {"path": str(paths[(turn + 1) % 2])} if route == "/v1/bundle" else None
            changes.append(await client.post(route, json=body))
            await asyncio.sleep(0.05)
        is_over = True
        return changes

    async def work(client):
        *_, changes = await asyncio.gather(
            *[ask(client, n) for n in range(CLIENTS)], change(client)
        )
        return changes

    changes = small_bundle.run(service, work)
    assert [change.status_code for change in changes] == [200] * 6
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    of_digest = {first: range(1000, 1040), second: range(5000, 5040)}
    seen = set()
    for answer in answers:
        found = answer.json()
        seen.add(found["bundle"])
        assert len(found["lists"]) in (3, 9)
        for listed in found["lists"]:
            assert len(listed["items"]) == 6
            assert set(listed["items"]) <= set(of_digest[found["bundle"]])
    assert seen == {first, second}
    assert len(answers) >= 6 * CLIENTS


def test_the_bundle_before_stays_for_a_rollback(service, paths):
    first, second = digests(paths)
    got = send(service, "POST", "/v1/bundle/rollback")
    assert got.status_code == 422
    assert got.json()["error"].startswith("rollback: expected an earlier bundle, got none")
    got = send(service, "POST", "/v1/bundle", {"path": str(paths[1])})
    nothing = {"upserted": 0, "removed": 0, "left_out": []}
    assert got.json() == {"bundle": second, "previous": first, "items": nothing}
    assert send(service, "GET", "/v1/info").json()["digest"] == second
    got = send(service, "POST", "/v1/bundle/rollback")
    assert got.json() == {"bundle": first, "previous": second, "items": nothing}
    assert send(service, "GET", "/readyz").json()["bundle"] == first


def test_a_damaged_bundle_changes_nothing(service, paths, tmp_path):
    before = service.live.current
    damaged = tmp_path / "damaged"
    shutil.copytree(paths[1], damaged)
    file = damaged / "item_vectors.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for path, reason in (
        (damaged, "item_vectors.npy: the bundle is damaged"),
        (tmp_path / "none", "expected a bundle with manifest.json, found none"),
        ("~nobody-of-this-name", "no home"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "expected a bundle with manifest.json"),
    ):
        for route in ("/v1/bundle", "/v1/shadow"):
            got = send(service, "POST", route, {"path": str(path)})
            assert got.status_code == 422, path
            assert reason in got.json()["error"]
    assert service.live.current is before and service.live.previous is None


def test_one_change_at_a_time(paths, monkeypatch):
    begun, release = threading.Event(), threading.Event()
    served = live.open_warm(paths[0])
    current = live.Live(served)

    def slow(path):
        begun.set()
        assert release.wait(20)
        return served

    monkeypatch.setattr(live, "open_warm", slow)
    thread = threading.Thread(target=current.swap, args=[paths[1]])
    thread.start()
    assert begun.wait(20)
    for change in (lambda: current.swap(paths[1]), current.roll_back):
        with pytest.raises(live.BusyError, match="another bundle is being opened"):
            change()
    release.set()
    thread.join()
    assert current.previous is served


def compare(service, compared):
    """The comparison, once so many queries are in it."""
    deadline = time.monotonic() + 120
    while (found := send(service, "GET", "/v1/compare").json())["compared"] < compared:
        assert time.monotonic() < deadline
    return found


def ask(service, count, **body):
    async def work(client):
        for n in range(count):
            users = [{"user_id": n % 30 + 1}]
            await client.post("/v1/retrieve", json={"users": users, "k": 5, **body})

    small_bundle.run(service, work)


def test_a_shadow_of_the_same_bundle_has_the_same_lists(service, paths):
    assert send(service, "GET", "/v1/compare").status_code == 422
    started = send(service, "POST", "/v1/shadow", {"path": str(paths[0]), "share": 0.5}).json()
    assert (started["share"], started["compared"]) == (0.5, 0)
    ask(service, 20, scenario="all")
    found = compare(service, 10)
    assert (found["compared"], found["skipped"], found["refused"]) == (10, 0, 0)
    assert found["candidate"] == service.live.current.digest
    alike = {
        "lists": 10,
        "overlap_at_k": 1.0,
        "same_first": 1.0,
        "mean_score_drift": 0.0,
        "mean_absolute_score_drift": 0.0,
    }
    assert found["scenarios"] == dict.fromkeys(small_bundle.SCENARIOS, alike)
    assert send(service, "DELETE", "/v1/shadow").json() == {"stopped": True}
    assert send(service, "DELETE", "/v1/shadow").json() == {"stopped": False}
    assert send(service, "GET", "/v1/compare").status_code == 422


def test_a_shadow_without_a_common_item_overlaps_nowhere(service, paths):
    send(service, "POST", "/v1/shadow", {"path": str(paths[1]), "share": 1})
    ask(service, 4, scenario="feed")
    found = compare(service, 4)["scenarios"]
    assert set(found) == {"feed"}
    assert found["feed"]["overlap_at_k"] == found["feed"]["same_first"] == 0.0
    assert found["feed"]["mean_score_drift"] is None


@pytest.mark.parametrize("share", [0, 1.5, "much", None])
def test_a_share_is_one(service, paths, share):
    got = send(service, "POST", "/v1/shadow", {"path": str(paths[1]), "share": share})
    assert got.status_code == 422
    assert got.json()["error"].startswith("body.share: ")


def answer(items, scores):
    return lists_lib.Answer("known", "feed", items, scores, 0)


def test_overlap_and_drift_of_two_lists():
    sums = shadow.Sums()
    sums.add(answer([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0]), answer([1, 3, 9], [5.0, 1.5, 1.0]))
    sums.add(answer([], []), answer([], []))
    assert sums.describe() == {
        "lists": 2,
        "overlap_at_k": (2 / 4 + 1) / 2,
        "same_first": 1.0,
        "mean_score_drift": (1.0 - 0.5) / 2,
        "mean_absolute_score_drift": (1.0 + 0.5) / 2,
    }


def test_a_candidate_that_fails_is_counted_and_asked_again(service, paths):
    send(service, "POST", "/v1/shadow", {"path": str(paths[1]), "share": 1})
    candidate = service._shadows._shadow.served.retriever
    retrieve, failures = candidate.retrieve, [ZeroDivisionError("a fault\nof ours")]

    def fail(*arguments):
        if failures:
            raise failures.pop()
        return retrieve(*arguments)

    candidate.retrieve = fail
    ask(service, 3, scenario="feed")
    found = compare(service, 2)
    assert (found["compared"], found["refused"]) == (2, 1)
    assert found["last_refusal"] == "ZeroDivisionError: a fault of ours"


def test_a_candidate_that_refuses_or_is_slow_is_counted(service, paths):
    send(service, "POST", "/v1/shadow", {"path": str(paths[1]), "share": 1})
    candidate = service._shadows._shadow
    begun, release = threading.Event(), threading.Event()
    retrieve = candidate.served.retriever.retrieve

    def slow(*arguments):
        begun.set()
        assert release.wait(20)
        raise ValueError("users: unknown field")

    candidate.served.retriever.retrieve = slow
    ask(service, 1, scenario="feed")
    assert begun.wait(20)
    ask(service, shadow._QUEUE + 5, scenario="feed")
    assert candidate.describe()["skipped"] == 5
    candidate.served.retriever.retrieve = retrieve
    release.set()
    found = compare(service, shadow._QUEUE)
    assert (found["refused"], found["last_refusal"]) == (1, "users: unknown field")
