import numpy as np
import pytest

from dsmoe_jax.compare import hits


def make(query_Q, hits_Q, k=5):
    Q = len(query_Q)
    columns = (query_Q, np.arange(Q) % 3, np.full(Q, 4), hits_Q)
    names = ("query", "scenario", "relevant", f"hits@{k}")
    return dict(zip(names, map(np.array, columns), strict=True))


def test_a_file_gives_the_same_numbers_back(tmp_path):
    queries = make([2, 3, 900, 70_001], [0, 4, 1, 2])
    hits.write(tmp_path / "a.parquet", "a", {"one": queries, "other": make([1], [3], k=7)})
    back = hits.load(tmp_path)["a", "one"]
    np.testing.assert_array_equal(back.query_Q, queries["query"])
    np.testing.assert_array_equal(back.scenario_Q, queries["scenario"])
    np.testing.assert_array_equal(back.recall(5), [0, 1, 0.25, 0.5])
    assert list(hits.load(tmp_path)["a", "other"].hits) == [7]


@pytest.mark.parametrize("times", [1, 2])
def test_packed_jobs_are_the_same_in_one_file(tmp_path, times):
    for job in ("a", "b"):
        hits.write(tmp_path / f"{job}.parquet", job, {"one": make([1, 2], [0, 1])})
    for _ in range(times):
        hits.pack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [hits.FILE]
    found = hits.load(tmp_path)
    assert list(found) == [("a", "one"), ("b", "one")]
    np.testing.assert_array_equal(found["b", "one"].hits[5], [0, 1])


def test_a_job_that_ran_again_counts_before_what_was_packed(tmp_path):
    for number, value in enumerate((1, 2, 3)):
        hits.write(tmp_path / "a.parquet", "a", {"one": make([1], [value])})
        assert hits.load(tmp_path)["a", "one"].hits[5] == [value]
        if number == 1:
            hits.pack(tmp_path)
    hits.pack(tmp_path)
    assert hits.load(tmp_path)["a", "one"].hits[5] == [3]
