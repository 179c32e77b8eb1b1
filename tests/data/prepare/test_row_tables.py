"""Tables of examples and queries: the same whatever the blocks, memory of one block, their size."""

import tracemalloc

import numpy as np
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import histories, row_tables

S, USERS, EVENTS = 50, 40, 2000


class Writer(store_lib.StoreWriter):
    """Keeps the blocks of a table, or only counts their rows."""

    def __init__(self, keep: bool) -> None:
        self.keep, self.blocks, self.rows = keep, [], 0

    def append_array(self, *_: object) -> "Writer":
        return self

    def append(self, block: np.ndarray) -> None:
        self.rows += len(block)
        self.blocks += [block] * self.keep


def make_rows() -> tuple[histories.ClickSequence, histories.Rows]:
    rng = np.random.default_rng(0)
    user_E = np.sort(rng.integers(1, USERS, EVENTS))
    day_E = np.arange(EVENTS) // 100
    scenario_E, item_E = rng.integers(0, S, EVENTS), rng.integers(1, 30, EVENTS)
    positives = histories.Positives(user_E, scenario_E, item_E, np.arange(EVENTS) + 1, day_E)
    sequence = histories.make_scenario_history(positives, S)
    time_E = positives.time_E
    return sequence, histories.Rows(user_E, scenario_E, item_E, time_E, time_E, day_E)


def write(sequence: histories.ClickSequence, rows: histories.Rows, keep: bool = True) -> Writer:
    writer = Writer(keep)
    one = [(rows.time_X, rows.time_X + 1)]
    found = {store_lib.Windows("history"): one, store_lib.Windows("log"): one}
    order = [store_lib.Windows(*of) for of in (("history",), ("scenario_history", S), ("log",))]
    tables = row_tables.Tables(writer, ["train"], order)
    tables.add({"train": rows}, found, sequence)
    columns = tables.columns
    expected = ["history_start", "history_stop", "scenario_history_start_0"]
    assert columns[4:7] == expected and columns[-2:] == ["log_start", "log_stop"]
    assert writer.rows == len(rows.user_X)
    return writer


def test_tables_do_not_depend_on_the_blocks(monkeypatch):
    sequence, rows = make_rows()
    [whole_XC] = write(sequence, rows).blocks
    monkeypatch.setattr(row_tables, "_BLOCK_CELLS", 10_000)
    parts = write(sequence, rows).blocks
    assert len(parts) > 10
    np.testing.assert_array_equal(np.concatenate(parts), whole_XC)
    # Of every scenario the windows that a search over all rows finds.
    events = (sequence.key_E, sequence.day_E, sequence.time_E)
    for s in (0, S - 1):
        key_X = rows.user_X * S + s
        start_X, stop_X = histories.find_windows(*events, key_X, rows.day_X, rows.before_X)
        np.testing.assert_array_equal(whole_XC[:, 6 + 2 * s : 8 + 2 * s].T, [start_X, stop_X])


def test_memory_is_that_of_a_block(monkeypatch):
    sequence, rows = make_rows()
    monkeypatch.setattr(row_tables, "_BLOCK_CELLS", 10_000)
    tracemalloc.start()
    try:
        write(sequence, rows, keep=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < EVENTS * 2 * S * 8 / 4


@pytest.mark.parametrize(("rows", "read"), [(10**6, 10**9), (10**4, 10)])
def test_windows_that_are_small_are_not_worth_a_line(capsys, rows, read):
    row_tables.check_size({"train": {"a": rows}}, 200, read)
    assert not capsys.readouterr().out


def test_windows_many_times_the_files_are_told(capsys):
    row_tables.check_size({"train": {"a": 150_000}, "test_queries": {"a": 50_000}}, 200, 5_000_000)
    assert capsys.readouterr().out == (
        "scenarios: the windows of 200,000 examples and queries into the history of each of 200 "
        "scenarios need 610 MiB of disk, 128 times the files read; for less, set "
        "data.least_positives, with data.rare_scenarios='merge' to keep all rows\n"
    )


def test_windows_that_no_disk_should_hold_are_refused():
    message = r"fewer than 200 for 3,000,000 .*8.9 GiB of disk, 96 times .*data.least_positives"
    with pytest.raises(ValueError, match=message):
        row_tables.check_size({"train": {"a": 3_000_000}}, 200, 10**8)
