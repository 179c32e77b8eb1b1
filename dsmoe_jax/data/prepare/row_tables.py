"""Tables of training examples and queries, which hold a window into every sequence.

Owns how they are written and how large they may become. Does not own how a window is found
(`histories.py`).

    X  rows (training examples or queries)     C  columns of the rows
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dsmoe_jax import runlog
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import histories

# Numbers that are written at once: 32 MiB.
_BLOCK_CELLS = 1 << 22
# What the windows of every scenario may need where there are many.
_MANY_SCENARIOS, _MOST_BYTES = 64, 1 << 33
# Windows that are worth a line: of this size, and so many times that of the files read.
_MUCH_BYTES, _MUCH = 1 << 27, 20

# The windows of a sequence in each table: starts and stops.
Found = Mapping[store_lib.Windows, Sequence[tuple[np.ndarray, np.ndarray]]]


def check_size(counts: Mapping[str, Mapping[str, int]], num_scenarios: int, read: int) -> None:
    """Says what the windows of every scenario need where that is many times the files read.

    Args:
      counts: Rows of each table, by scenario.
      num_scenarios: S; every row has as many windows.
      read: Bytes of the files read.

    Raises:
      ValueError: When there are many scenarios and their windows need more than 8 GiB.
    """
    rows = sum(sum(by_scenario.values()) for by_scenario in counts.values())
    needed = 16 * rows * num_scenarios
    times = f", {needed / read:,.0f} times the files read" if read else ""
    mend = "set data.least_positives, with data.rare_scenarios='merge' to keep all rows"
    if num_scenarios > _MANY_SCENARIOS and needed > _MOST_BYTES:
        raise ValueError(
            f"scenarios: expected fewer than {num_scenarios} for {rows:,} examples and queries, "
            f"whose windows into the history of every scenario need {needed / 2**30:.1f} GiB of "
            f"disk{times}, and at most {_MOST_BYTES >> 30} GiB are written; {mend}"
        )
    if needed > max(_MUCH_BYTES, _MUCH * read):
        runlog.say(
            f"scenarios: the windows of {rows:,} examples and queries into the history of each of "
            f"{num_scenarios} scenarios need {needed / 2**20:,.0f} MiB of disk{times}; for less, "
            f"{mend}"
        )


def write(
    writer: store_lib.StoreWriter,
    rows: Mapping[str, histories.Rows],
    found: Found,
    scenario_history: histories.ClickSequence,
) -> list[str]:
    """Writes the tables, block after block.

    The windows of every scenario are as many columns, so they are found for a block at a time. In
    the tables they follow the first of `found`.

    Returns:
      The columns' names.
    """
    by_scenario = store_lib.Windows("scenario_history", scenario_history.num_scenarios)
    first, *more = found
    order = [first, by_scenario, *more]
    columns = ["user", "scenario", "item", "time_s", *(n for w in order for n in w.columns)]
    finder, size = histories.WindowFinder(scenario_history), max(1, _BLOCK_CELLS // len(columns))
    for i, (name, row) in enumerate(rows.items()):
        matrix_XC = writer.append_array(name, np.int64, len(columns))
        values = (row.user_X, row.scenario_X, row.item_X, row.time_X)
        for start in range(0, len(row.user_X), size):
            block = slice(start, start + size)
            block_XC = np.empty((len(row.user_X[block]), len(columns)), np.int64)
            block_XC[:, : len(values)] = np.stack([value_X[block] for value_X in values], axis=1)
            column = len(values)
            for windows in order:
                bounds_XC = block_XC[:, column : column + len(windows.columns)]
                column += len(windows.columns)
                if windows == by_scenario:
                    finder.fill(row, block, bounds_XC)
                else:
                    bounds_XC[:] = np.stack([bound_X[block] for bound_X in found[windows][i]], 1)
            matrix_XC.append(block_XC)
    return columns
