"""Events of an own log, wherever they are held: what its tables and its scenarios need of them.

Owns the interface of an engine of preparation, and that of a log in memory. Does not own which rows
are events (`own_rows.py`).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import polars as pl

from dsmoe_jax.data.prepare import own_config, own_files, own_rows, parts


@runtime_checkable
class Events(Protocol):
    """A log that was read.

    Attributes:
      tally: What is known of all rows.
      positives, exposures: As in `assemble.Dataset`, once scenarios are chosen.
    """

    tally: own_rows.Tally
    positives: pl.DataFrame
    exposures: pl.DataFrame | None

    @property
    def parts(self) -> Callable[..., Sequence[parts.Part]] | None:
        """As in `assemble.Dataset`."""
        ...

    def count_scenarios(self) -> dict[str, int]:
        """Positives by the text of their scenario."""
        ...

    def choose(self, ids: Mapping[str, int], values: Sequence[str]) -> None:
        """Leaves out positives of other scenarios than those of `ids`.

        Args:
          ids: Scenario id by the text that positives have.
          values: By scenario id, the text that exposures have; their scenario is unknown elsewhere.
        """
        ...

    def distinct(self, side: str) -> pl.Series:
        """The users or items of the positives that are left, in any order."""
        ...


class InMemory:
    """See `Events`."""

    def __init__(
        self,
        section: own_config.LogConfig,
        logs: list[own_files.Log],
        paths: Mapping[str, pathlib.Path],
        tables: Mapping[str, pl.DataFrame],
    ):
        found = own_rows.read_logs(section, logs, paths, tables)
        self.positives, self.tally = found.positives, found.tally
        self.exposures = found.exposures if section.exposures else None

    @property
    def parts(self) -> None:
        """See `Events`."""

    def count_scenarios(self) -> dict[str, int]:
        """See `Events`."""
        return dict(self.positives.group_by("scenario").len().iter_rows())

    def choose(self, ids: Mapping[str, int], values: Sequence[str]) -> None:
        """See `Events`."""
        self.positives = self.positives.with_columns(_number(ids)).drop_nulls("scenario")
        if self.exposures is not None:
            shown = {value: i for i, value in enumerate(values)}
            self.exposures = self.exposures.with_columns(_number(shown))

    def distinct(self, side: str) -> pl.Series:
        """See `Events`."""
        return self.positives[side].unique()


def _number(ids: Mapping[str, int]) -> pl.Expr:
    return pl.col("scenario").replace_strict(
        list(ids), list(ids.values()), default=None, return_dtype=pl.Int64
    )
