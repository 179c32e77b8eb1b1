"""A store written part after part has the bytes of one that is written at once."""

import dataclasses
import itertools
import json

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.data.prepare import custom, own_events, parts
from tests.data.prepare import test_custom

NUM_USERS = 30
BASE = custom.CustomConfig(
    user_id="user", item_id="item", time="time", time_unit="iso", scenario="page"
)
CONFIGS = {
    "days": {},
    "exposures": {"positive": "action == buy", "exposures": True},
    "repeats": {"repeats": True, "least_positives": 100, "rare_scenarios": "merge"},
    "leave-one-out": {
        "split": "leave_one_out", "scenarios": ("home", "search"), "time_zone": "Europe/Berlin",
    },
    "tables": {
        "users_file": "users.csv", "items_file": "items.csv", "user_sparse": ("country",),
        "user_dense": ("age",), "item_bags": ("tags",), "bag_separator": "|",
    },
}  # fmt: skip


class InRanges(own_events.InMemory):
    """A log whose events are given by ranges of users, from after a bound up to the next."""

    bounds = ()

    @property
    def parts(self):
        def make(users, items, num_scenarios, last_day):
            def cut(frame, low, high):
                row = pl.Series(users.rows(frame["user"]))
                return frame.filter((row > low) & (row <= high))

            bounds = (0, *self.bounds, len(users.raw_id))
            shown = self.positives.clear() if self.exposures is None else self.exposures
            return [
                parts.Whole(
                    cut(self.positives, *ends),
                    cut(shown, *ends),
                    users,
                    items,
                    num_scenarios,
                    last_day,
                )
                for ends in itertools.pairwise(bounds)
            ]

        return make


def prepare(section, folder):
    section.prepare(str(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    # Everything but the time of writing, which the manifest does not hold.
    return {path.name: path.read_bytes() for path in folder.iterdir()}, manifest


@pytest.mark.parametrize("bounds", [(1,), (10, 10, 20), tuple(range(1, NUM_USERS))], ids=len)
@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_parts_make_the_store_of_the_whole(tmp_path, monkeypatch, fields, bounds):
    raw = test_custom.write(tmp_path / "raw")
    section = dataclasses.replace(BASE, raw_dir=str(raw), **fields)
    whole = prepare(section, tmp_path / "whole")
    monkeypatch.setattr(InRanges, "bounds", bounds)
    monkeypatch.setattr(own_events, "InMemory", InRanges)
    assert prepare(section, tmp_path / "parts") == whole


def test_a_part_is_numbered_when_its_turn_comes(tmp_path, monkeypatch):
    raw = test_custom.write(tmp_path / "raw")
    monkeypatch.setattr(InRanges, "bounds", (10, 20))
    monkeypatch.setattr(own_events, "InMemory", InRanges)
    numbered = []
    positives = parts.Whole.positives

    def number(part):
        numbered.append(len(np.unique(part.positive_rows["user"])))
        return positives(part)

    monkeypatch.setattr(parts.Whole, "positives", number)
    prepare(dataclasses.replace(BASE, raw_dir=str(raw)), tmp_path / "store")
    # Once for what they add up to, and once to be written.
    assert numbered == [10, 10, 10] * 2
