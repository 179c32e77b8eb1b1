"""What the service tells of its bundle, and items that come and go through it."""

import pytest

from tests.serving import small_bundle


@pytest.fixture
def service(tmp_path):
    served = small_bundle.serve(small_bundle.write_bundle(tmp_path / "a"))
    yield served
    served.close()


def send(service, method, route, **request):
    return small_bundle.run(service, lambda client: client.request(method, route, **request))


def test_facts_are_in_raw_values(service):
    info = send(service, "GET", "/v1/info").json()
    assert (info["method"], info["dataset"], info["items"], info["users"]) == (
        "DSMOE",
        "shop",
        40,
        30,
    )
    assert info["digest"] == service.live.current.digest
    assert info["filters"]["brand"] == ["b0", "b1", "b2", "b3"]
    assert sorted(info["filters"]["colours"]) == ["blue", "green", "red"]
    assert {"user_id", "age", "orders", "history", "shown", "time"} == set(info["request_fields"])
    assert info["default_exclude"] == "seen"
    [item] = send(service, "GET", "/v1/items?id=1001&id=5&id=x").json()["items"]
    assert (item["item_id"], item["brand"]) == (1001, "b2")
    dense_V1 = service.live.current.retriever.bundle.load("items_dense")
    assert item["price"] == pytest.approx(10 + 2 * dense_V1[2, 0], rel=1e-5)
    user = send(service, "GET", "/v1/users/1").json()
    assert user["clicked"] == {"feed": [1004, 1005], "deals": [1006]}
    assert (user["user_id"], user["events"], len(user["history"])) == (1, 6, 6)
    assert send(service, "GET", "/v1/users/99").json() == {"error": "user_id: unknown '99'"}
    sample = send(service, "GET", "/v1/sample_users?n=5").json()["users"]
    assert [user["user_id"] for user in sample] == [1, 2]
    got = send(service, "GET", "/v1/sample_users?n=0")
    assert got.status_code == 422 and got.json()["error"].startswith("query.n: ")


def test_items_come_and_go(service):
    items = [{"item_id": 7, "brand": "b1"}, {"item_id": 8, "price": 2.5}]
    assert send(service, "POST", "/v1/items", json={"items": items}).json() == {"items": 42}
    gone = {"item_ids": [7, "1000"]}
    for removed in (2, 0):
        got = send(service, "DELETE", "/v1/items", json=gone)
        assert (got.status_code, got.json()) == (200, {"items": 40, "removed": removed})
    [found] = send(
        service, "POST", "/v1/retrieve", json={"users": [{}], "scenario": "feed", "k": 50}
    ).json()["lists"]
    assert set(found["items"]) == {8, *range(1001, 1040)}
    for method, body, told in (
        ("POST", {"items": [{"item_id": 9, "maker": "b"}]}, "items: unknown field 'maker'"),
        ("POST", {"items": []}, "body.items: List should have at least 1 item"),
        ("POST", {"items": [{"brand": "b1"}]}, "items: item_id: expected an integer, got None"),
        ("POST", {"items": [{"item_id": True}]}, "items: item_id: expected an id, got True"),
        ("DELETE", {"item_ids": [True]}, "body.item_ids.0."),
        ("DELETE", {"item_ids": [8, 9]}, "items: expected items of the bundle, got 9"),
    ):
        got = send(service, method, "/v1/items", json=body)
        assert got.status_code == 422 and got.json()["error"].startswith(told)
    assert service.live.current.retriever.catalogue.num_items == 40


def test_facts_of_items_are_those_of_today(service):
    price = {"item_id": 1001, "price": 2.5}
    new = {"item_id": 7, "brand": "b1", "price": 3.5, "colours": ["red", "blue"]}
    send(service, "POST", "/v1/items", json={"items": [price, new]})
    send(service, "DELETE", "/v1/items", json={"item_ids": [1001]})
    got = send(service, "GET", "/v1/items?id=7&id=1001").json()["items"]
    assert got == [
        {**new, "removed": False},
        {"item_id": 1001, "removed": True, "brand": None, "price": 2.5, "colours": []},
    ]
    send(service, "POST", "/v1/items", json={"items": [{"item_id": 1002}, {"item_id": 8}]})
    got = send(service, "GET", "/v1/items?id=8&id=1002").json()["items"]
    assert [item["price"] for item in got] == [None, None]
    assert send(service, "GET", "/v1/info").json()["items"] == 41
