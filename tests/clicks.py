"""A store made of clicks that a test writes down."""

import datetime
import pathlib

import polars as pl

from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import assemble, entities

DAY_S = 86_400
_EPOCH = datetime.date(1970, 1, 1)


def write_store(
    path: pathlib.Path,
    clicks: list[tuple[int, int, int, int]],
    *,
    earlier: list[tuple[int, int]] = (),
    users: int,
    items: int,
    scenarios: tuple[str, ...] = ("A", "B"),
) -> store_lib.Store:
    """Clicks (user, scenario, item, day) from day 1 on; the last day tests, the one before
    validates. `earlier` holds (user, item) from before the log. Ids are row numbers, from 1.
    """
    frame = pl.DataFrame(
        [
            # The position keeps the order within a day.
            (user, scenario, item, day * DAY_S + i, _EPOCH + datetime.timedelta(days=day))
            for i, (user, scenario, item, day) in enumerate(clicks, start=1)
        ],
        schema=["user", "scenario", "item", "time_s", "day"],
        orient="row",
    )
    dataset = assemble.Dataset(
        name="clicks (synthetic)",
        scenarios=scenarios,
        users=entities.Table(pl.DataFrame({"user": range(1, users + 1)}), key="user"),
        items=entities.Table(pl.DataFrame({"item": range(1, items + 1)}), key="item"),
        positives=frame,
        days=frame["day"].to_list(),
        pre_history=pl.DataFrame(list(earlier), schema=["user", "item"], orient="row")
        if earlier
        else None,
    )
    section = schema.DataConfig(validation_days=1, test_days=1)
    assemble.write(dataset, section, str(path), {}, {})
    return store_lib.Store.open(path)
