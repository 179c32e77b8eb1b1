"""Budgets of a comparison: seeds, epochs, minutes and test days."""

import dataclasses
import re

from dsmoe_jax.config import schema


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is spent on a comparison.

    Attributes:
      seeds: Of the systems of Table 2: 0 to seeds - 1.
      other_seeds: The same for what Table 4 and the figures need beyond them.
      max_epochs: Upper bound on a job's epochs; None leaves the configuration's own.
      max_minutes: Minutes after which no further epoch begins; 0 for no limit.
      shares_teacher: Whether all seeds are taught by the teacher of seed 0.
      decisions: Whether `all` takes in what the paper leaves open, with teachers of its own.
      dropped_days: Each tests on other days: how many days at the end of the log are left out.
    """

    seeds: int = 2
    other_seeds: int = 1
    max_epochs: int | None = None
    max_minutes: float = 0.0
    shares_teacher: bool = True
    decisions: bool = False
    dropped_days: tuple[int, ...] = (0,)

    def limit(self, experiment: schema.Experiment) -> dict[str, int | float]:
        """The fields that keep an experiment within the budget, both of its stages alike."""
        fields: dict[str, int | float] = {}
        for section in ("train", "teacher"):
            own = getattr(experiment, section).max_epochs
            if self.max_epochs is not None and own > self.max_epochs:
                fields[f"{section}.max_epochs"] = self.max_epochs
            if self.max_minutes:
                fields[f"{section}.max_minutes"] = self.max_minutes
        return fields


BUDGETS = {
    "small": Budget(max_epochs=15, max_minutes=3.0),
    "full": Budget(3, 3, shares_teacher=False, decisions=True, dropped_days=(0, 2)),
}


def adjust(budget: Budget, seeds: int | None, days: str | None) -> Budget:
    """A budget with other seeds or days, comma-separated numbers; None keeps the budget's.

    Raises:
      ValueError: When either is out of range.
    """
    if seeds is not None:
        if seeds < 1:
            raise ValueError(f"--seeds: expected a number >= 1, got {seeds}")
        budget = dataclasses.replace(budget, seeds=seeds, other_seeds=seeds)
    if days is not None:
        if not re.fullmatch(r"\d+(,\d+)*", days):
            raise ValueError(f"--days: expected numbers such as 0,2, got {days!r}")
        dropped = tuple(dict.fromkeys(int(day) for day in days.split(",")))
        budget = dataclasses.replace(budget, dropped_days=dropped)
    return budget
