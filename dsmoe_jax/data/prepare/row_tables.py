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


class Tables:
    """Appends to the tables, block after block.

    The windows of every scenario are as many columns, so they are found for a block at a time.

    Attributes:
      columns: Their names, the same of every table.
    """

    def __init__(
        self,
        writer: store_lib.StoreWriter,
        names: Sequence[str],
        order: Sequence[store_lib.Windows],
    ):
        """`order` is that of the windows' columns; those of every scenario are among them."""
        of_windows = [name for windows in order for name in windows.columns]
        self.columns = ["user", "scenario", "item", "time_s", *of_windows]
        self._order, width = order, len(self.columns)
        self._arrays = {name: writer.append_array(name, np.int64, width) for name in names}

    def add(
        self,
        rows: Mapping[str, histories.Rows],
        found: Found,
        scenario_history: histories.ClickSequence,
        first: int = 0,
    ) -> None:
        """Appends rows of every table.

        Args:
          rows: Of each table.
          found: Their windows into each sequence but that of every scenario.
          scenario_history: That sequence, of the users of the rows.
          first: Its events that were written before.
        """
        finder = histories.WindowFinder(scenario_history)
        size = max(1, _BLOCK_CELLS // len(self.columns))
        for i, (name, row) in enumerate(rows.items()):
            values = (row.user_X, row.scenario_X, row.item_X, row.time_X)
            for start in range(0, len(row.user_X), size):
                block = slice(start, start + size)
                block_XC = np.empty((len(row.user_X[block]), len(self.columns)), np.int64)
                block_XC[:, : len(values)] = np.stack([value_X[block] for value_X in values], 1)
                column = len(values)
                for windows in self._order:
                    bounds_XC = block_XC[:, column : column + len(windows.columns)]
                    column += len(windows.columns)
                    if windows.num_scenarios:
                        finder.fill(row, block, bounds_XC)
                        bounds_XC += first
                    else:
                        bounds_XC[:] = np.stack([b_X[block] for b_X in found[windows][i]], 1)
                self._arrays[name].append(block_XC)
