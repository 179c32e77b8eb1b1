"""The service in this process: its answers, its limits, its doors."""

import asyncio
import json
import threading
import time
import types

import numpy as np
import pytest

from dsmoe_jax.serving import batching
from dsmoe_jax.serving import retriever as retriever_lib
from tests.serving import small_bundle

RETRIEVE = "/v1/retrieve"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "a")


@pytest.fixture(scope="module")
def retriever(path):
    return retriever_lib.Retriever.load(path)


@pytest.fixture
def serve(path):
    """Makes services of the bundle, and ends them."""
    made = []

    def make(**options):
        made.append(small_bundle.serve(path, **options))
        return made[-1]

    yield make
    for service in made:
        service.close()


def send(service, method, route, *, anonymous=False, **request):
    return small_bundle.run(
        service, lambda client: client.request(method, route, **request), anonymous=anonymous
    )


def post(service, body, **options):
    return send(service, "POST", RETRIEVE, json=body, **options)


def test_lists_are_the_retrievers(serve, retriever):
    users = [
        {"user_id": 3},
        {"user_id": 999, "history": [1001, 1002, 5]},
        {"user_id": "new", "age": "20s"},
        {"history": [{"item_id": 1003, "scenario": "feed", "time": 5}], "orders": 3.5},
    ]
    got = post(serve(), {"users": users, "scenario": "all", "k": 7})
    assert got.status_code == 200
    answer = got.json()
    assert answer["bundle"] == retriever.bundle.digest
    frame = retriever.recommend(users, k=7)
    lists = answer["lists"]
    assert [found["scenario"] for found in lists] == [*small_bundle.SCENARIOS] * 4
    assert [found["user_id"] for found in lists[::3]] == [3, 999, "new", None]
    assert [found["user"] for found in lists[::3]] == [
        *("known", "from_history", "cold", "from_history")
    ]
    assert [found["unknown_events"] for found in lists[::3]] == [0, 1, 0, 0]
    assert [item for found in lists for item in found["items"]] == frame["item_id"].to_list()
    scores = [score for found in lists for score in found["scores"]]
    np.testing.assert_array_equal(np.float32(scores), frame["score"].to_numpy())


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": "shown"},
        {"exclude": None, "k": 40},
        {"exclude": ["seen", 1001, 1002]},
        {"allow": [1001, 1005, 7], "exclude": None},
        {"filter": {"brand": ["b1", "b2"], "colours": ["red"]}},
        {"scenario": ["deals", "feed"], "k": 1},
        {"scenario": "search"},
    ],
)
def test_options_are_the_retrievers(serve, retriever, options):
    got = post(serve(), {"users": [{"user_id": 4}, {}], **options}).json()["lists"]
    frame = retriever.recommend([{"user_id": 4}, {}], **options)
    assert [item for found in got for item in found["items"]] == frame["item_id"].to_list()


def test_what_is_left_out_by_default_is_what_the_evaluation_left_out(serve, retriever):
    [found] = post(serve(), {"users": [{"user_id": 4}], "scenario": "feed", "k": 40}).json()[
        "lists"
    ]
    everything = retriever.recommend([4], "feed", k=40, exclude=None)["item_id"].to_list()
    assert retriever.usual_exclude == "seen"
    seen = set(everything) - set(found["items"])
    assert seen == set(everything) & set(
        retriever.encoder.items.decode(retriever.encoder.encode({"user_id": [4]}).seen(0))
    )
    assert seen


def test_what_waits_together_is_computed_together_and_answered_alike(serve):
    service = serve()
    bodies = [
        {"users": [{"user_id": n % 30 + 1}, {"history": [1000 + n]}], "scenario": scenario, "k": 5}
        for n in range(20)
        for scenario in ("feed", "all")
    ]

    async def at_once(client):
        return await asyncio.gather(*[client.post(RETRIEVE, json=body) for body in bodies])

    together = [answer.json() for answer in small_bundle.run(service, at_once)]
    alone = [post(service, body).json() for body in bodies]
    for one, other in zip(together, alone, strict=True):
        assert one["bundle"] == other["bundle"]
        for found, expected in zip(one["lists"], other["lists"], strict=True):
            np.testing.assert_allclose(found.pop("scores"), expected.pop("scores"), rtol=1e-5)
            assert found == expected
    text = service.metrics.text().decode()
    assert 'dsmoe_batch_queries_bucket{le="16.0"}' in text
    count = float(text.partition("dsmoe_batch_queries_count ")[2].split()[0])
    assert count < len(bodies) + 10


def test_a_query_that_is_refused_costs_the_others_nothing(serve):
    good = {"users": [{"user_id": 1}], "scenario": "feed", "k": 5}
    bad = {"users": [{"user_id": 1, "hobby": "chess"}], "scenario": "feed", "k": 5}

    async def at_once(client):
        return await asyncio.gather(
            *[client.post(RETRIEVE, json=body) for body in (good, bad, good)]
        )

    answers = small_bundle.run(serve(), at_once)
    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert answers[1].json()["error"].startswith("users: unknown field 'hobby'; ")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("{", 400, "body: expected JSON: "),
        ("", 400, "body: expected JSON: "),
        (b"\xff\xfe", 400, "body: expected JSON: "),
        ("[]", 422, "body: Expected `object`, got `array`"),
        ("{}", 422, "missing required field `users`"),
        ('{"users": [1]}', 422, "Expected `object`, got `int` - at `$.users[0]`"),
        ('{"users": [{}], "kk": 3}', 422, "contains unknown field `kk`"),
        ('{"users": [{}], "k": "3"}', 422, "Expected `int`, got `str` - at `$.k`"),
        ('{"users": [{}], "k": 0}', 400, "k: expected 1 to 50, got 0"),
        ('{"users": [{}], "k": 51}', 400, "k: expected at most 50, got 51"),
        ('{"users": [{}, {}, {}, {}]}', 400, "users: expected at most 3, got 4"),
        ('{"users": [{"history": [1, 2, 3, 4, 5, 6]}]}', 400, "users: history: expected at most 5"),
        ('{"users": [{}], "allow": [1, 2, 3, 4, 5]}', 400, "allow: expected at most 4, got 5"),
        ('{"users": [{}], "scenario": "fed"}', 422, "got 'fed'; nearest: 'feed'"),
        ('{"users": [{}], "scenario": []}', 422, "scenario: expected at least one, got none"),
        ('{"users": [{}], "scenario": ["feed", "feed"]}', 422, "scenario: expected every name"),
        ('{"users": [{}], "exclude": "all"}', 422, "exclude: expected 'seen', 'shown'"),
        ('{"users": [{}], "exclude": ["sen", 1001]}', 422, "got 'sen'; nearest: 'seen'"),
        ('{"users": [{"user_id": true}]}', 422, "users: user_id: expected an id, got True"),
        ('{"users": [{}], "filter": {"maker": ["b"]}}', 422, "filter: expected features among"),
        ('{"users": [{"orders": "many"}]}', 422, "users: orders: expected a number, got 'many'"),
        ('{"users": [{"history": 7}]}', 422, "users: history: expected a list, got 7"),
    ],
)
def test_a_bad_body_is_told_why(serve, body, status, reason):
    service = serve(k=50, users=3, events=5, ids=4)
    got = send(service, "POST", RETRIEVE, content=body)
    assert got.status_code == status
    told = got.json()["error"]
    assert reason in told and "\n" not in told


def test_no_users_have_no_lists(serve):
    assert post(serve(), {"users": []}).json()["lists"] == []


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("route", [RETRIEVE, "/v1/bundle"])
def test_a_body_that_is_too_large_is_refused(serve, announced, route):
    async def parts():
        for _ in range(30):
            yield b" " * 10

    content = b" " * 300 if announced else parts()
    got = send(serve(bytes=200), "POST", route, content=content)
    assert got.status_code == 413
    assert got.json() == {"error": "body: expected at most 200 bytes, got more"}
    assert got.headers["connection"] == "close"


def test_a_body_that_does_not_come_is_given_up(serve):
    async def parts():
        yield b"{"
        await asyncio.sleep(60)

    got = send(serve(time_s=0.05), "POST", RETRIEVE, content=parts())
    assert got.status_code == 408
    assert got.json() == {"error": "body: expected all of it within 0.05 s"}


def test_only_queries_are_posted_to_their_route(serve):
    got = send(serve(), "GET", RETRIEVE)
    assert (got.status_code, got.headers["allow"]) == (405, "POST")
    assert send(serve(), "GET", "/v1/nothing").json() == {"error": "Not Found"}
    assert send(serve(), "PUT", "/v1/info").status_code == 405


READING = ["/v1/info", "/v1/sample_users", "/v1/users/1", "/v1/items?id=1000"]
CHANGING = [
    ("POST", "/v1/bundle", {"path": "x"}),
    ("POST", "/v1/bundle/rollback", None),
    ("POST", "/v1/shadow", {"path": "x"}),
    ("DELETE", "/v1/shadow", None),
    ("POST", "/v1/items", {"items": []}),
    ("DELETE", "/v1/items", {"item_ids": []}),
]


@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer no"}, {"authorization": "secret"}])
def test_with_a_token_every_route_asks_for_it(serve, given):
    service = serve()
    calls = [("GET", route, None) for route in READING] + CHANGING
    for method, route, body in [*calls, ("POST", RETRIEVE, {"users": []})]:
        got = send(service, method, route, json=body, headers=given, anonymous=True)
        assert got.status_code == 401, route
        assert got.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in got.json()["error"]
    for route in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics"):
        assert send(service, "GET", route, anonymous=True).status_code == 200, route


def test_without_a_token_lists_are_free_and_nothing_changes(serve):
    service = serve(token=None)
    for route in READING:
        assert send(service, "GET", route, anonymous=True).status_code == 200
    assert post(service, {"users": []}, anonymous=True).status_code == 200
    for method, route, body in CHANGING:
        got = send(service, method, route, json=body, anonymous=True)
        assert got.status_code == 403
        assert "this server has no token" in got.json()["error"]


def hold(service):
    """Makes computations wait for an event, in the worker thread."""
    served = service.live.current
    served.query_s = 1.0
    release, begun = threading.Event(), threading.Event()
    retrieve = served.retriever.retrieve

    def slow(*arguments):
        begun.set()
        assert release.wait(20)
        return retrieve(*arguments)

    served.retriever.retrieve = slow
    return release, begun


@pytest.mark.parametrize("inline", [True, False])
def test_a_query_that_fails_costs_the_others_nothing(serve, monkeypatch, caplog, inline):
    service = serve()
    monkeypatch.setattr(batching, "_INLINE_S", 1e9 if inline else -1.0)
    retriever = service.live.current.retriever
    retrieve, together = retriever.retrieve, []

    def fail(columns, *arguments):
        together.append(len(columns["user_id"]))
        if 13 in columns["user_id"]:
            raise ZeroDivisionError("a fault\nof ours")
        return retrieve(columns, *arguments)

    def body(user):
        return {"users": [{"user_id": user}], "scenario": "feed", "k": 5}

    async def at_once(client):
        return await asyncio.gather(
            *[client.post(RETRIEVE, json=body(user)) for user in (12, 13, 14)]
        )

    expected = [post(service, body(user)).json() for user in (12, 14)]
    monkeypatch.setattr(retriever, "retrieve", fail)
    first, failed, last = small_bundle.run(service, at_once)
    assert max(together) > 1
    assert failed.status_code == 500
    assert failed.json() == {
        "error": "no lists: the service failed with ZeroDivisionError; its log says where"
    }
    assert [first.json()["lists"], last.json()["lists"]] == [e["lists"] for e in expected]
    [record] = caplog.records
    digest = service.live.current.digest[:12]
    told = record.getMessage()
    assert told.startswith("no lists: ZeroDivisionError at test_service.py:")
    assert told.endswith(f": a fault of ours; users: 1, scenario: feed, bundle: {digest}")
    assert 'dsmoe_refusals_total{status="500"} 1.0' in service.metrics.text().decode()
    assert post(service, body(13)).status_code == 500
    assert post(service, body(1)).status_code == 200


def test_a_query_that_is_tried_again_is_still_given_up_in_time(serve, monkeypatch):
    service = serve(time_s=1.0)
    retriever = service.live.current.retriever
    release = threading.Event()

    def fail(columns, *arguments):
        if len(columns["user_id"]) > 1:
            raise ZeroDivisionError
        assert release.wait(20)
        return []

    monkeypatch.setattr(batching, "_INLINE_S", -1.0)
    monkeypatch.setattr(retriever, "retrieve", fail)
    body = {"users": [{"user_id": 1}], "scenario": "feed"}

    async def at_once(client):
        found = await asyncio.gather(*[client.post(RETRIEVE, json=body) for _ in range(3)])
        release.set()
        return found

    statuses = [answer.status_code for answer in small_bundle.run(service, at_once)]
    assert sorted(statuses) == [503, 503, 504]


def test_too_many_at_once_are_sent_away_and_the_rest_answered(serve):
    service = serve(waiting=3)
    release, begun = hold(service)
    body = {"users": [{"user_id": 1}], "scenario": "feed"}

    async def work(client):
        waiting = [asyncio.create_task(client.post(RETRIEVE, json=body)) for _ in range(3)]
        await asyncio.to_thread(begun.wait, 20)
        refused = await client.post(RETRIEVE, json=body)
        health = await client.get("/healthz")
        release.set()
        return refused, health, await asyncio.gather(*waiting)

    refused, health, answered = small_bundle.run(service, work)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "3 requests are waiting already" in refused.json()["error"]
    assert health.status_code == 200
    assert [got.status_code for got in answered] == [200, 200, 200]
    assert post(service, body).status_code == 200


def test_a_query_is_given_up_when_its_time_is_over(serve):
    # Long enough for a busy machine to begin with the first query.
    service = serve(time_s=1.0)
    release, begun = hold(service)

    async def work(client):
        first = asyncio.create_task(client.post(RETRIEVE, json={"users": [{}], "k": 2}))
        await asyncio.to_thread(begun.wait, 20)
        second = await client.post(RETRIEVE, json={"users": [{}], "k": 3})
        found = await first, second
        release.set()
        # In the same loop, which the end of the first computation is told to.
        return *found, await client.post(RETRIEVE, json={"users": [{}]})

    computed, waited, after = small_bundle.run(service, work)
    assert (computed.status_code, waited.status_code) == (504, 503)
    assert computed.json() == {"error": "time: no list within 1 s; ask for less"}
    assert waited.json() == {"error": "time: waited 1 s for others; try again"}
    assert after.status_code == 200


def test_metrics_count_what_was_answered(serve):
    service = serve()
    post(service, {"users": [{"user_id": 1}, {}], "scenario": "feed", "k": 4})
    post(service, {"users": [{"history": [1000]}], "k": 4})
    post(service, {"users": 3})
    deadline = time.monotonic() + 120
    while "dsmoe_live_recall{" not in (text := send(service, "GET", "/metrics").text):
        assert time.monotonic() < deadline
    for line in (
        'dsmoe_search_seconds_count{scenario="feed"} 1.0',
        'dsmoe_search_seconds_count{scenario="several"} 1.0',
        'dsmoe_tower_seconds_count{scenario="feed"} 1.0',
        'dsmoe_tower_seconds_count{scenario="several"} 1.0',
        'dsmoe_queue_seconds_count{scenario="feed"} 1.0',
        "dsmoe_batch_queries_count 2.0",
        'dsmoe_items_total{scenario="feed"} 12.0',
        'dsmoe_lists_total{scenario="feed",user="known"} 1.0',
        'dsmoe_lists_total{scenario="feed",user="cold"} 1.0',
        'dsmoe_lists_total{scenario="deals",user="from_history"} 1.0',
        'dsmoe_refusals_total{status="422"} 1.0',
        'dsmoe_live_recall{scenario="search"} 1.0',
        f'dsmoe_bundle{{digest="{service.live.current.digest}"}} 1.0',
    ):
        assert line in text.splitlines()


def test_tower_and_search_are_timed_apart(serve, monkeypatch):
    service = serve()
    times = iter([10.0, 10.1, 10.3, 10.7, 11.5])
    monkeypatch.setattr(
        retriever_lib, "time", types.SimpleNamespace(perf_counter=lambda: next(times))
    )
    got = post(service, {"users": [{"user_id": 1}], "scenario": "feed", "k": 4})
    # 0.1 s to read the request and 0.4 s in the tower, of 1.5 s in all.
    assert got.headers["server-timing"].endswith("tower;dur=500.000, search;dur=1000.000")
    text = service.metrics.text().decode()
    for part, seconds in (("tower", 0.5), ("search", 1.0)):
        line = text.partition(f'dsmoe_{part}_seconds_sum{{scenario="feed"}} ')[2]
        assert float(line.split()[0]) == pytest.approx(seconds)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_body_is_json_whatever_it_is_called(serve, kind):
    service = serve()
    headers = {"content-type": kind} if kind else {}
    for route, body in (
        (RETRIEVE, {"users": []}),
        ("/v1/items", {"items": [{"item_id": 7, "brand": "b1"}]}),
    ):
        got = send(service, "POST", route, content=json.dumps(body), headers=headers)
        assert got.status_code == 200, got.text
    got = send(service, "POST", "/v1/items", content="items=7", headers=headers)
    assert got.status_code == 400


def test_a_server_that_stops_says_so_and_ends_its_connections(serve):
    service = serve()
    assert send(service, "GET", "/readyz").json()["status"] == "ready"
    service.is_stopping = True
    assert send(service, "GET", "/readyz").status_code == 503
    got = post(service, {"users": [{}]})
    assert (got.status_code, got.headers["connection"]) == (200, "close")


def test_the_page_and_the_routes_load_nothing_from_elsewhere(serve):
    service = serve()
    for route in ("/", "/docs"):
        got = send(service, "GET", route, anonymous=True)
        assert got.headers["content-type"].startswith("text/html")
        assert got.headers["content-security-policy"].startswith("default-src 'none'")
        assert send(service, "HEAD", route, anonymous=True).status_code == 200
        outside = got.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in outside and "https://" not in outside
    document = send(service, "GET", "/openapi.json").json()
    body = document["paths"][RETRIEVE]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"] == "#/components/schemas/Query"
    assert document["components"]["schemas"]["Query"]["required"] == ["users"]
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in text
