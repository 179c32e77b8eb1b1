import shutil
import weakref

import numpy as np
import polars as pl
import pytest

from dsmoe_jax import optional
from dsmoe_jax.serving import parity, push, retriever, vector_stores
from tests.serving import tool_bundle

K = tool_bundle.K
EMBEDDED = ["lancedb", "qdrant", "parquet"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return retriever.Retriever.load(tool_bundle.write(tmp_path_factory.mktemp("fism"), "fism"))


def is_exact(overlaps):
    return [overlap.is_exact for overlap in overlaps]


@pytest.mark.parametrize("to", EMBEDDED)
def test_a_store_returns_the_exact_lists_of_every_scenario(to, served, tmp_path):
    store = vector_stores.STORES[to](str(tmp_path / "there"), "items", replace=False)
    overlaps = push.push(served, store, k=K)
    assert [(o.scenario, o.share, o.is_exact) for o in overlaps] == [
        (name, 1.0, True) for name in tool_bundle.SCENARIOS
    ]
    assert overlaps[0].line(8) == "  home         overlap@8 100.00 %  equal"


@pytest.mark.parametrize("to", EMBEDDED)
def test_what_is_there_is_replaced_only_when_asked(to, served, tmp_path):
    make = vector_stores.STORES[to]
    first = make(str(tmp_path / "there"), "items", replace=False)
    push.push(served, first, k=K, users=2)
    if to == "qdrant":
        first._client.close()  # A folder has one client at a time
    second = make(str(tmp_path / "there"), "items", replace=False)
    with pytest.raises(ValueError, match=r"there: expected no '\w+' yet, found one; .*--replace"):
        push.push(served, second, k=K, users=2)
    second._replace = True
    assert all(is_exact(push.push(served, second, k=K, users=2)))


def test_qdrant_in_memory_takes_one_point_per_item_with_payload(served):
    store = vector_stores.QdrantStore(":memory:", "items", replace=False)
    assert all(is_exact(push.push(served, store, k=K)))
    assert store._client.count("items").count == tool_bundle.NUM_ITEMS
    [point] = store._client.retrieve("items", [1], with_vectors=True)
    assert point.payload.keys() == {"item_id", "brand", "tags"} and point.payload["item_id"] == "i0"
    assert point.vector.keys() == {"vector_home", "vector_search", "vector_cart"}


@pytest.mark.parametrize(
    ("make", "metric"),
    [
        (vector_stores.LanceStore, "l2"),
        (vector_stores.LanceStore, "cosine"),
        (vector_stores.QdrantStore, "Euclid"),
        (vector_stores.QdrantStore, "Cosine"),
    ],
)
def test_another_metric_is_caught(make, metric, served, tmp_path):
    wrong = type("Wrong", (make,), {"metric": metric})
    overlaps = push.push(served, wrong(str(tmp_path / "there"), "items", replace=False), k=K)
    assert is_exact(overlaps) == [False] * 3
    assert "DIFFERENT" in overlaps[0].line(K)


def test_vectors_of_another_scenario_are_caught(served, tmp_path):
    class Mixed(vector_stores.ParquetFile):
        def search(self, vector, query_D, k):
            vector = {"vector_cart": "vector_home"}.get(vector, vector)
            return super().search(vector, query_D, k)

    store = Mixed(str(tmp_path / "items.parquet"), "", replace=False)
    assert is_exact(push.push(served, store, k=K)) == [True, True, False]


def test_one_wrong_row_or_a_short_list_is_caught(served, tmp_path):
    probes = parity.probe(served, ["u1", "u2"], "home", K, removes=False)
    exact = [served.encoder.items.decode(row) for row in probes.item_QT]
    assert parity.compare(served, probes, exact) == ("home", 1.0, 0.0)
    others = [i for i in served.item_ids if i not in exact[0]]
    for wrong in (exact[0][:-1], [*exact[0][:-1], exact[0][0]], [*exact[0][:-1], "no item"]):
        found = parity.compare(served, probes, [wrong, exact[1]])
        assert found.share == pytest.approx(15 / 16) and found.gap == np.inf
    found = parity.compare(served, probes, [[*exact[0][:-1], others[-1]], exact[1]])
    assert found.share == pytest.approx(15 / 16) and not found.is_exact
    swapped = [exact[0][1], exact[0][0], *exact[0][2:]]
    found = parity.compare(served, probes, [swapped, exact[1]])
    assert found.share == 1.0 and not found.is_exact


def test_rows_hold_raw_values_and_parts_are_bounded(served, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "_ROWS", 7)
    layout = push.describe(served)
    parts = list(push.read_items(served, layout))
    assert [len(part) for part in parts] == [7, 7, 7, 7, 2]
    frame = pl.concat(parts)
    items = pl.read_csv(served.bundle.root.parent / "raw" / "items.csv").sort("item")
    assert frame["item_id"].to_list() == items["item"].to_list()
    assert frame["brand"].to_list() == items["brand"].to_list()
    tags = [sorted(set(filter(None, (text or "").split("|")))) for text in items["tags"]]
    assert [sorted(row) for row in frame["tags"].to_list()] == tags
    np.testing.assert_array_equal(
        frame["vector_cart"].to_numpy(), served.bundle.load("item_vectors")[2, 1:]
    )


def test_items_that_came_later_are_pushed_and_removed_ones_are_not(served, tmp_path):
    changed = retriever.Retriever.load(shutil.copytree(served.bundle.root, tmp_path / "copy"))
    changed.upsert_items({"item_id": "new", "brand": "acme", "tags": ["x"]})
    changed.remove_items(["i3"])
    store = vector_stores.ParquetFile(str(tmp_path / "items.parquet"), "", replace=False)
    assert all(is_exact(push.push(changed, store, k=K)))
    frame = pl.read_parquet(tmp_path / "items.parquet")
    assert frame.height == tool_bundle.NUM_ITEMS
    assert frame.row(-1)[:3] == ("new", "acme", ["x"])
    assert "i3" not in frame["item_id"]


def test_a_file_is_written_part_by_part(served, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "_ROWS", 4)
    layout, held, most = push.describe(served), [], []

    def parts():
        for part in push.read_items(served, layout):
            held.append(weakref.ref(part))
            yield part
            del part
            # The writer may still have the last one.
            most.append(sum(other() is not None for other in held))

    store = vector_stores.ParquetFile(str(tmp_path / "items.parquet"), "", replace=False)
    store.write(layout, parts())
    assert len(held) == 8 and max(most) <= 1
    expected = pl.concat(push.read_items(served, layout)).drop("number")
    assert pl.read_parquet(tmp_path / "items.parquet").equals(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["items.parquet"]


def test_a_file_that_is_not_finished_is_not_there(served, tmp_path):
    layout = push.describe(served)

    def parts():
        yield from push.read_items(served, layout)
        raise ValueError("a part that cannot be read")

    store = vector_stores.ParquetFile(str(tmp_path / "items.parquet"), "", replace=False)
    with pytest.raises(ValueError, match="a part that cannot be read"):
        store.write(layout, parts())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("to", EMBEDDED)
def test_a_part_whose_items_have_no_features_fits_the_others(to, served, tmp_path, monkeypatch):
    changed = retriever.Retriever.load(shutil.copytree(served.bundle.root, tmp_path / "copy"))
    changed.upsert_items([{"item_id": f"new{n}"} for n in range(9)])
    monkeypatch.setattr(push, "_ROWS", 4)
    store = vector_stores.STORES[to](str(tmp_path / "there"), "items", replace=False)
    assert all(is_exact(push.push(changed, store, k=K, users=3)))


def test_scenarios_that_no_column_can_be_called_are_numbered(served, monkeypatch):
    monkeypatch.setattr(served, "scenarios", ("a.b", "a/b", "c"))
    assert push.describe(served).vectors == ("vector_0", "vector_1", "vector_2")


def test_several_interests_and_one_vector_per_item(tmp_path):
    served = retriever.Retriever.load(tool_bundle.write(tmp_path, "mind"))
    assert push.describe(served).vectors == ("vector",) * 3
    store = vector_stores.QdrantStore(":memory:", "items", replace=False)
    overlaps = push.push(served, store, k=K, users=5)
    assert is_exact(overlaps) == [True] * 3


def test_a_store_that_does_not_answer_and_a_missing_library_are_one_line(monkeypatch):
    store = vector_stores.QdrantStore("http://127.0.0.1:1", "items", replace=False)
    with pytest.raises(OSError, match=r"http://127.0.0.1:1: expected a store that answers, got"):
        store.write(push.Layout(("vector",), 3, ()), iter(()))
    monkeypatch.setattr(optional, "list_missing", list)
    libraries = {"lancedb": "lancedb", "qdrant": "qdrant_client", "milvus": "pymilvus"}
    for to, library in libraries.items():
        with pytest.raises(ValueError, match=rf"push to {to}: expected the library {library}, fou"):
            vector_stores.STORES[to]("x", "items", replace=False)


def test_a_bundle_without_users_cannot_be_probed():
    with pytest.raises(ValueError, match="probe users: expected users that the bundle knows"):
        parity.choose_users([])
    assert parity.choose_users(range(10), 3) == parity.choose_users(range(10), 3)
