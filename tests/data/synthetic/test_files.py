import json

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.data.synthetic import files


def fill(folder, text="a,b\n1,2\n", settings=None, calls=None):
    def write(path):
        (path / "rows.csv").write_text(text)
        if calls is not None:
            calls.append(path.name)

    return files.generate(folder, "Some Data", "Simulated: nothing.", settings or {"n": 1}, write)


def test_generated_folder_is_called_synthetic(tmp_path):
    fill(tmp_path / "raw", settings={"num_users": 7, "seed": 3})
    note = (tmp_path / "raw" / "SYNTHETIC.md").read_text()
    assert note.startswith("# Synthetic rows in the layout of Some Data")
    assert "No row comes from the real data set" in note
    assert "- num_users: 7" in note and "- seed: 3" in note
    assert json.loads((tmp_path / "raw" / "synthetic.json").read_text())["files"]["rows.csv"] == 8


def test_unchanged_folder_is_reused_and_changed_settings_are_generated_again(tmp_path):
    calls = []
    fill(tmp_path / "raw", calls=calls)
    fill(tmp_path / "raw", calls=calls)
    assert calls == ["raw.partial"]
    fill(tmp_path / "raw", text="a\n1\n", settings={"n": 2}, calls=calls)
    assert len(calls) == 2
    assert (tmp_path / "raw" / "rows.csv").read_text() == "a\n1\n"


def test_folder_with_a_truncated_file_is_generated_again(tmp_path):
    fill(tmp_path / "raw")
    (tmp_path / "raw" / "rows.csv").write_text("a,b\n")
    fill(tmp_path / "raw")
    assert (tmp_path / "raw" / "rows.csv").read_text() == "a,b\n1,2\n"


def test_other_peoples_files_are_not_overwritten(tmp_path):
    (tmp_path / "mine.csv").write_text("precious")
    with pytest.raises(ValueError, match="got a folder with other files; choose another"):
        fill(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.csv"]


def test_failure_leaves_the_old_folder_and_nothing_half_written(tmp_path):
    fill(tmp_path / "raw")

    def fail(path):
        (path / "rows.csv").write_text("half")
        raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        files.generate(tmp_path / "raw", "Some Data", "", {"n": 2}, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
    assert (tmp_path / "raw" / "rows.csv").read_text() == "a,b\n1,2\n"


def test_two_processes_do_not_generate_into_one_folder(tmp_path):
    def generate_again(path):
        with pytest.raises(ValueError, match="another process is generating these files"):
            fill(tmp_path / "raw")
        (path / "rows.csv").write_text("a\n")

    files.generate(tmp_path / "raw", "Some Data", "", {"n": 1}, generate_again)
    assert (tmp_path / "raw" / "rows.csv").read_text() == "a\n"


def test_what_a_killed_run_left_behind_is_cleared(tmp_path):
    (tmp_path / "raw.partial").mkdir()
    (tmp_path / "raw.partial" / "half.csv").write_text("a")
    fill(tmp_path / "raw")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]
    assert not (tmp_path / "raw" / "half.csv").exists()


def test_streams_differ_by_name_and_block_and_repeat_by_seed():
    def draw(*key):
        return files.random_stream(*key).integers(0, 2**62, 4).tolist()

    assert draw(5, "users", 1) == draw(5, "users", 1)
    keys = [(5, "users", 1), (5, "users", 2), (5, "items", 1), (6, "users", 1), (5, "users")]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_covering_codes_hold_every_code():
    rng = np.random.default_rng(0)
    code = files.covering_codes(rng, 1000, 800)
    assert len(code) == 1000 and set(code.tolist()) == set(range(800))
    with pytest.raises(ValueError, match="expected 1 to 3"):
        files.covering_codes(rng, 3, 4)


def test_zipf_shares_fall_with_rank():
    np.testing.assert_allclose(files.zipf_shares(3), np.array([6, 3, 2]) / 11)
    np.testing.assert_allclose(files.zipf_shares(2, exponent=0.0), [0.5, 0.5])


def test_draw_shares_follows_the_shares():
    code = files.draw_shares(np.random.default_rng(1), np.array([6.0, 0.0, 3.0, 1.0]), 20_000)
    share = np.bincount(code, minlength=4) / len(code)
    assert share[1] == 0
    # Three standard errors of the largest share.
    np.testing.assert_allclose(share, [0.6, 0.0, 0.3, 0.1], atol=3 * (0.24 / 20_000) ** 0.5)


def test_spread_counts_keep_the_total():
    assert files.spread_counts(np.array([1.0, 1.0, 2.0]), 8).tolist() == [2, 2, 4]
    counts = files.spread_counts(np.random.default_rng(0).random(1001), 12_345)
    assert counts.sum() == 12_345 and counts.min() >= 0


def test_exact_mask_has_exactly_that_many():
    assert files.exact_mask(np.random.default_rng(0), 50, 7).sum() == 7


def test_scaled_counts_equal_the_published_one_at_full_size():
    assert files.scaled(6_510, 7_583, 7_583) == 6_510
    assert files.scaled(6_510, 7_583, 758) == 651
    assert files.scaled(3, 7_583, 500) == 1


def test_times_follow_the_hours_of_a_day():
    time_ms = files.draw_time_of_day_ms(np.random.default_rng(0), 50_000)
    assert time_ms.min() >= 0 and time_ms.max() < 86_400_000
    hour = np.bincount(time_ms // 3_600_000, minlength=24) / len(time_ms)
    # Measured on the twelve packaged days: quietest at 4, busiest at 22.
    assert hour.argmin() in (3, 4, 5) and hour.argmax() == 22
    assert abs(hour[22] - 0.065) < 0.005


def test_csv_file_writes_the_header_once_and_nulls_as_nothing(tmp_path):
    with (tmp_path / "a.csv").open("wb") as file:
        files.append_csv(file, pl.DataFrame({"x": [1, 2], "y": ["p", None]}))
        files.append_csv(file, pl.DataFrame({"x": [3], "y": ["q,r"]}))
    assert (tmp_path / "a.csv").read_text() == 'x,y\n1,p\n2,\n3,"q,r"\n'


def test_counts_follow_the_shares_and_no_value_is_left_out():
    assert files.counts_of(np.array([0.7, 0.2, 0.1]), 10).tolist() == [7, 2, 1]
    counts = files.counts_of(np.array([1e6, 1.0, 1.0]), 100)
    assert counts.sum() == 100 and counts.tolist()[1:] == [1, 1]
    with pytest.raises(ValueError, match="expected at least 3, one per value, got 2"):
        files.counts_of(np.ones(3), 2)


def test_dealt_codes_have_exact_shares_in_random_order():
    code = files.deal(np.random.default_rng(0), np.array([5.0, 3.0, 2.0]), 1000)
    assert np.bincount(code).tolist() == [500, 300, 200]
    assert np.abs(np.diff(code)).sum() > 300


def test_rows_with_close_scores_share_a_code():
    score = np.random.default_rng(0).standard_normal(1000)
    code = files.by_score(np.random.default_rng(1), score, np.ones(10), noise=0.0)
    assert np.bincount(code).tolist() == [100] * 10
    ordered = code[np.argsort(score)]
    # Ten runs of one hundred equal codes.
    assert (ordered.reshape(10, 100) == ordered.reshape(10, 100)[:, :1]).all()
    noisy = files.by_score(np.random.default_rng(1), score, np.ones(10), noise=1.0)
    assert 0.15 < (noisy == code).mean() < 0.9


def test_steps_have_the_stated_shares_below_each_edge():
    edge = np.array([0.0, 1.0, 10.0, 100.0])
    value = files.draw_steps(np.random.default_rng(0), 40_000, edge, np.array([0, 0.1, 0.6, 1.0]))
    assert value.min() >= 0 and value.max() < 100
    np.testing.assert_allclose([(value < 1).mean(), (value < 10).mean()], [0.1, 0.6], atol=0.01)


def test_ranges_are_named_by_where_they_start():
    found = files.to_ranges(np.array([0, 1, 9, 10]), np.array([0, 1, 10]), list("abc"))
    assert found.to_list() == ["a", "b", "b", "c"]


def test_with_nulls_hides_the_marked_rows():
    mask = np.array([False, True, False])
    assert files.with_nulls(np.array([1.0, 2.0, 3.0]), mask).to_list() == [
        1.0,
        None,
        3.0,
    ]
    assert files.with_nulls(pl.Series(["a", "b", "c"]), mask).to_list() == [
        "a",
        None,
        "c",
    ]
