"""Finished jobs as systems: what tables, figures and comparisons read.

Owns the way from a folder of records to the systems of a table, each with what every seed and every
choice of test days found.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from dsmoe_jax.compare import hits, plan, records


@dataclasses.dataclass(frozen=True)
class Entry:
    """One system of one finished job: the folder of records, the job's, the system's name in it."""

    folder: pathlib.Path
    record: records.Record
    name: str

    @property
    def seed(self) -> int:
        """Of the job."""
        return int(self.record["seed"])

    @property
    def dropped_days(self) -> int:
        """Of the job."""
        return int(self.record["dropped_days"])

    @property
    def summary(self) -> dict[str, Any]:
        """Recall per scenario and macro, on test and on validation days."""
        return dict(self.record["systems"][self.name])

    def queries(self) -> hits.PerQuery:
        """Hits of every test query."""
        return hits.load(self.folder)[records.job_name(self.record), self.name]


@dataclasses.dataclass(frozen=True)
class System:
    """A system of a table.

    Attributes:
      name: Of the system as planned, or of the baseline in its record.
      kind: Of its jobs: "run" or "scored".
      entries: In the order of days and seeds; empty where nothing is finished.
    """

    name: str
    label: str
    kind: str
    entries: tuple[Entry, ...]

    @property
    def by_day(self) -> dict[int, dict[int, Entry]]:
        """The entries by choice of test days, then by seed."""
        found: dict[int, dict[int, Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.dropped_days, {})[entry.seed] = entry
        return found

    @property
    def days(self) -> frozenset[int]:
        """The choices of test days it was tested on."""
        return frozenset(self.by_day)

    def on_days(self, *dropped_days: int) -> "System":
        """The entries of some days; none where it was not tested on all of them."""
        tested = dropped_days if self.days.issuperset(dropped_days) else ()
        kept = tuple(entry for entry in self.entries if entry.dropped_days in tested)
        return dataclasses.replace(self, entries=kept)


def load(folder: pathlib.Path, table: Iterable[plan.System]) -> list[System]:
    """The systems of a table; one without finished jobs is a system without entries."""
    found = []
    for system in table:
        jobs = records.load_all(folder, f"{system.name}-seed*.json")
        jobs.sort(key=lambda job: (job["dropped_days"], job["seed"]))
        # A job of baselines has several systems.
        is_one = system.kind == "run" or not jobs
        names = dict.fromkeys(name for job in jobs for name in job["systems"])
        for name in [system.name] if is_one else names:
            entries = tuple(Entry(folder, job, name) for job in jobs if name in job["systems"])
            found.append(System(name, system.label if is_one else name, system.kind, entries))
    return found


def own(systems: Iterable[System]) -> System:
    """DSMOE itself.

    Raises:
      ValueError: When it has no finished job.
    """
    for system in systems:
        if system.name == plan.METHOD and system.entries:
            return system
    raise ValueError(f"report: expected a finished job of {plan.METHOD}, found none; run it first")
