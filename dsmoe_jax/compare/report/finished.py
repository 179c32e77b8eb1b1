"""Finished cells as systems: what tables, figures and comparisons read.

Owns the way from a folder of records to the systems of a table, each with what every seed and every
choice of test days found.
"""

import dataclasses
import pathlib
from collections.abc import Iterable

from dsmoe_jax.compare import hits, plan, records, rows


@dataclasses.dataclass(frozen=True)
class Entry:
    """One system of one finished cell.

    Attributes:
      record: The cell's record.
      name: Of the system in it.
    """

    record: records.Record
    name: str

    @property
    def seed(self) -> int:
        """Of the cell."""
        return int(self.record["seed"])

    @property
    def dropped_days(self) -> int:
        """Of the cell."""
        return int(self.record["dropped_days"])

    @property
    def summary(self) -> dict:
        """Recall per scenario and macro, on test and on validation days."""
        return dict(self.record["systems"][self.name])

    def queries(self) -> hits.PerQuery:
        """Hits of every test query."""
        return hits.decode(self.record["systems"][self.name]["queries"])


@dataclasses.dataclass(frozen=True)
class System:
    """A row of a table.

    Attributes:
      name: Of the row, or of the reference row.
      label: What is printed.
      kind: Of its cells: "run" or "scored".
      entries: In the order of days and seeds; empty where nothing is finished.
    """

    name: str
    label: str
    kind: str
    entries: tuple[Entry, ...]

    @property
    def days(self) -> frozenset[int]:
        """The choices of test days it was tested on."""
        return frozenset(entry.dropped_days for entry in self.entries)

    def on_days(self, *dropped_days: int) -> "System":
        """The entries of some days; none where it was not tested on all of them."""
        kept = tuple(e for e in self.entries if e.dropped_days in dropped_days)
        if not self.days.issuperset(dropped_days):
            kept = ()
        return dataclasses.replace(self, entries=kept)


def load(folder: pathlib.Path, table: Iterable[rows.Row]) -> list[System]:
    """The systems of a table's rows; a row without finished cells is a system without entries."""
    found = []
    for row in table:
        cells = load_cells(folder, row.name)
        names = dict.fromkeys(name for cell in cells for name in cell["systems"])
        if row.kind == "run" or not cells:
            names = {row.name: None}
        for name in names:
            entries = tuple(Entry(cell, name) for cell in cells if name in cell["systems"])
            label = row.label if row.kind == "run" or not cells else name
            found.append(System(name, label, row.kind, entries))
    return found


def load_cells(folder: pathlib.Path, row: str) -> list[records.Record]:
    """The records of a row, by days and seeds."""
    cells = [records.load(path) for path in folder.glob(f"{row}-seed*.json")]
    known = [cell for cell in cells if cell is not None and cell["row"] == row]
    return sorted(known, key=lambda cell: (cell["dropped_days"], cell["seed"]))


def shared_days(systems: Iterable[System]) -> list[int]:
    """The choices of test days that every system with entries was tested on."""
    found = [system.days for system in systems if system.entries]
    return sorted(frozenset.intersection(*found)) if found else []


def own(systems: Iterable[System]) -> System:
    """DSMOE's own row.

    Raises:
      ValueError: When it has no finished cell.
    """
    for system in systems:
        if system.name == plan.METHOD and system.entries:
            return system
    raise ValueError(f"report: expected a finished cell of {plan.METHOD}, found none; run it first")
