import numpy as np
import pytest

from dsmoe_jax.bench import search


def test_every_contestant_is_described_against_ours():
    entry = {
        "queries_per_s": 1200.0,
        "peak_bytes": 3 << 20,
        "ratio": {"median": 2.0, "least": 1.5, "greatest": 2.5},
    }
    found = {"items": 5000, "queries": 10, "dim": 4, "k": {"7": {"FAISS flat": entry}}}
    lines = search.describe(found)
    assert lines[0] == "search: 5,000 items, 4 wide, 10 queries a turn"
    assert "1,200 queries/s" in lines[-1]
    assert "2.00 x ours [1.50, 2.50]" in lines[-1]


@pytest.mark.parametrize("title", ["dsmoe_jax exact", "FAISS flat"])
def test_contestants_show_that_they_find_what_ours_finds(title, tmp_path):
    arguments = (500, 9, 8, 20, tmp_path / "expected.npz")
    search.build(search.OURS, *arguments)
    turn, notes = search.build(title, *arguments)
    turn(1)
    # 500 items are next to nothing beside what a library takes for itself.
    assert abs(notes["peak_bytes"]) < 1 << 28


def test_other_items_are_refused_unless_they_tie_with_the_last():
    score_QT = np.array([[3.0, 2.0, 1.0]], np.float32)
    ours = np.array([[4, 5, 6]])
    search.compare("twin", score_QT, np.array([[4, 5, 9]]), score_QT, ours)
    with pytest.raises(ValueError, match="twin: query 0: expected our items"):
        search.compare("twin", score_QT, np.array([[4, 9, 6]]), score_QT, ours)
    with pytest.raises(ValueError, match="twin: expected our scores"):
        search.compare("twin", score_QT + 1, ours, score_QT, ours)
