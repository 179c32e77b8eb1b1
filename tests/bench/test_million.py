import numpy as np
import pytest

from dsmoe_jax.bench import million, synthetic_bundle
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import retriever as retriever_lib
from dsmoe_jax.serving import towers
from tests.bench import small_run

ITEMS, USERS, K = 20_000, 1000, 20


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("million") / "bundle"
    assert synthetic_bundle.write(path, items=2000, users=50) == 5
    return path


@pytest.mark.slow
def test_the_short_form_is_measured_and_described():
    flags = (f"--items={ITEMS}", f"--users={USERS}", f"--k={K}", "--held_out=128")
    found = small_run.measure(million, *flags, "--exact_queries=256", "--near_queries=512")
    assert found["load_s"].keys() == {"mapped", "verified"}
    few, all_of_them = found["bulk"]["exact"], found["bulk"]["chosen"]
    assert few["queries"] == 256 and all_of_them["queries"] == 4 * USERS
    for lists in (few, all_of_them):
        assert lists["rows"] == K * lists["queries"]
        assert 0 < lists["peak_bytes"] <= lists["bound_bytes"]
        # The allowance does not grow with the queries.
        assert 0 < lists["bound_bytes"] - million.ALLOWANCE_BYTES <= found["bundle_bytes"]
    index = found["index"]
    # Of other queries than the promise was measured on.
    assert min(index["recall"], index["recall_removed"]) > index["min_recall"] - 0.02
    assert index["recall_on_probes"] >= index["min_recall"] == 0.99
    exact = (million.EXACT, million.NUMPY, million.FLAT)
    assert all(found["search"][title]["recall"] > 0.999 for title in exact)
    lines = million.describe(found)
    assert lines[0].startswith("million: 20,000 items and 1,000 users, synthetic (generated, ")
    assert "recall 0.99 promised: " in lines[2]
    assert f"{found['search'][million.NUMPY]['lists_per_s']:,.0f} lists/s" in "\n".join(lines)
    assert "GB of memory, at most 1." in lines[-1]


def test_a_synthetic_bundle_is_whole_and_its_vectors_are_its_towers(path):
    found = bundle_lib.Bundle.open(path)
    assert "synthetic" in found.manifest["dataset"]
    _, item_tower = towers.make_towers(found)
    vector_VD = found.load("item_vectors")[0]
    np.testing.assert_array_equal(item_tower(towers.read_items(found), 0), vector_VD)
    served = retriever_lib.Retriever(found)
    lists = served.recommend([0, 49], "all", 5)
    assert len(lists) == 2 * 4 * 5 and lists["item_id"].is_in(served.item_ids).all()
    assert served.encoder.encode({"user_id": [0, 49]}).seen(1).size == synthetic_bundle.EVENTS


def test_too_much_memory_is_an_error(path, tmp_path, monkeypatch):
    monkeypatch.setattr(million, "ALLOWANCE_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=r"bulk: expected at most [0-9,]+ bytes of memory, got "):
        million.bulk_lists(path, tmp_path, 4, K)


def test_a_contestant_that_finds_other_items_is_refused(path, tmp_path, monkeypatch):
    served = retriever_lib.Retriever.load(path)
    vector_QMD = served.user_vectors(list(range(10)), "home")
    np.save(tmp_path / "vectors.npy", vector_QMD[:, 0])
    million.build(million.EXACT, path, tmp_path, 10, K)
    _, notes = million.build(million.NUMPY, path, tmp_path, 10, K)
    assert notes == {"recall": 1.0}
    wrong = {million.NUMPY: lambda *_: lambda query_QD: np.ones((len(query_QD), K), int)}
    monkeypatch.setattr(million, "_MAKERS", wrong)
    with pytest.raises(ValueError, match="NumPy loop: expected our scores"):
        million.build(million.NUMPY, path, tmp_path, 10, K)
