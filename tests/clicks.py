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
    shown: list[tuple[int, int | None, int, int, int]] | None = None,
    earlier_shown: list[tuple[int, int]] | None = None,
    users: int,
    items: int,
    scenarios: tuple[str, ...] = ("A", "B"),
    repeats: bool = False,
) -> store_lib.Store:
    """Clicks (user, scenario, item, day) from day 1 on; the last day tests, the one before
    validates. `earlier` holds (user, item) from before the log. Ids are row numbers, from 1.

    Exposures are (user, scenario, item, day, second of the day), and (user, item) from before the
    log; the seconds of clicks are their numbers, from 1.
    """
    # The position keeps the order within a day.
    frame = _events([(*click, i) for i, click in enumerate(clicks, start=1)])
    dataset = assemble.Dataset(
        name="clicks (synthetic)",
        scenarios=scenarios,
        users=entities.Table(pl.DataFrame({"user": range(1, users + 1)}), key="user"),
        items=entities.Table(pl.DataFrame({"item": range(1, items + 1)}), key="item"),
        positives=frame,
        days=frame["day"].to_list(),
        pre_history=_pairs(earlier) if earlier else None,
        exposures=None if shown is None else _events(shown),
        pre_exposures=None if earlier_shown is None else _pairs(earlier_shown),
    )
    section = schema.DataConfig(validation_days=1, test_days=1, repeats=repeats)
    assemble.write(dataset, section, str(path), {"repeats": True} if repeats else {}, {})
    return store_lib.Store.open(path)


def _events(rows: list[tuple[int, int | None, int, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            (user, scenario, item, day * DAY_S + second, _EPOCH + datetime.timedelta(days=day))
            for user, scenario, item, day, second in rows
        ],
        schema={
            "user": pl.Int64,
            "scenario": pl.Int64,
            "item": pl.Int64,
            "time_s": pl.Int64,
            "day": pl.Date,
        },
        orient="row",
    )


def _pairs(rows: list[tuple[int, int]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema={"user": pl.Int64, "item": pl.Int64}, orient="row")
