"""Alimama's display-advertising logs (Tianchi data set 56, "Ali_Display_Ad_Click").

A scenario is the user's city level, so each user lives in exactly one; a positive is a click; a day
is a day in Beijing. The candidates are the ads that occur in the kept clicks, all days. The
behaviour log (723 million rows) names categories and brands, not ads: it becomes the sequence
`behavior`, whose ids are those of the ads' own `category` and `brand`.

**Deviation:** the paper that this project follows does not say which level its scenarios A1 to A4
are, what its candidates are, nor how it splits. By their sizes A1 is level 2 and A4 level 1; which
of levels 3 and 4 is A2 is a guess.
"""

import dataclasses
import datetime
import pathlib
from collections.abc import Iterator
from typing import ClassVar

import polars as pl

from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import assemble, clocks, columns, entities, events, read

SAMPLES_FILE = "raw_sample.csv"
ADS_FILE = "ad_feature.csv"
PROFILES_FILE = "user_profile.csv"
BEHAVIORS_FILE = "behavior_log.csv"
BEIJING_S = 8 * 3600
# 2017-05-06 00:00 in Beijing, the first of eight days of impressions.
SAMPLES_START_S, SAMPLES_DAYS = 1_494_000_000, 8
_SAMPLES_STOP_S = SAMPLES_START_S + SAMPLES_DAYS * store_lib.DAY_S
# Behaviours end with the impressions; a time outside their days is impossible.
BEHAVIORS_DAYS = 22
BEHAVIORS_START_S = _SAMPLES_STOP_S - BEHAVIORS_DAYS * store_lib.DAY_S

_SAMPLE_COLUMNS = (
    columns.Column("user", "int", low=0),
    columns.Column("time_stamp", "int", low=SAMPLES_START_S, high=_SAMPLES_STOP_S - 1),
    columns.Column("adgroup_id", "int", low=0),
    columns.Column("nonclk", "int", low=0, high=1),
    columns.Column("clk", "int", low=0, high=1),
)
# The code of a brand that is missing is the text NULL or nothing.
_AD_COLUMNS = (
    columns.Column("adgroup_id", "int", low=0),
    columns.Column("cate_id", "int", low=0),
    columns.Column("campaign_id", "int", low=0),
    columns.Column("customer", "int", low=0),
    columns.Column("brand", "code", low=0, nullable=True, null="NULL"),
    columns.Column("price", "float", low=0),
)
_AD_SPARSE = ("category", "campaign", "customer", "brand")
_LEVEL = "new_user_class_level"
_PROFILE_COLUMNS = (
    columns.Column("userid", "int", low=0),
    columns.Column("cms_segid", "code", low=0, high=96, nullable=True),
    columns.Column("cms_group_id", "code", low=0, high=12, nullable=True),
    columns.Column("final_gender_code", "code", low=1, high=2, nullable=True),
    columns.Column("age_level", "code", low=0, high=6, nullable=True),
    columns.Column("pvalue_level", "code", low=1, high=3, nullable=True),
    columns.Column("shopping_level", "code", low=1, high=3, nullable=True),
    columns.Column("occupation", "code", low=0, high=1, nullable=True),
    columns.Column(_LEVEL, "code", low=1, high=4, nullable=True),
)
# Impossible times are data, not damage: they are dropped, so any integer may stand here.
_BEHAVIOR_COLUMNS = (
    columns.Column("user", "int", low=0),
    columns.Column("time_stamp", "int"),
    columns.Column("cate", "int", low=0),
    columns.Column("brand", "code", low=0, nullable=True, null="NULL"),
)


@dataclasses.dataclass
class AlimamaConfig(schema.DataConfig):
    """Alimama's four official files, each as `.csv` or `.csv.gz`, in `raw_dir`.

    Left out: impressions without a click, unless exposures are kept, and then those of ads or users
    without a kept click; clicks of users without a profile or a city level;
    behaviours of users without a kept click, with a time outside the log's 22 days, in a category
    that no ad has, and exact repetitions. A brand that no ad has is unknown (id 0).

    Attributes:
      levels: The `new_user_class_level` of each scenario; scenario i is named A<i + 1>.
    """

    validation_days: int = 1
    test_days: int = 1
    levels: tuple[int, ...] = (2, 3, 4, 1)

    # What results are labelled with.
    NAME: ClassVar[str] = "Alimama"

    def prepare(self, store_dir: str) -> None:
        """Writes the store; see `schema.DataConfig.prepare`."""
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"data.levels: expected distinct levels, got {self.levels!r}")
        if not all(1 <= level <= 4 for level in self.levels):
            raise ValueError(f"data.levels: expected levels from 1 to 4, got {self.levels}")
        files = find_files(self.raw_dir)
        assemble.prepare(self, store_dir, list(files.values()), lambda: self._load(files))

    def _load(self, files: dict[str, pathlib.Path]) -> assemble.Dataset:
        users = self._read_users(files[PROFILES_FILE])
        ads = read_ads(files[ADS_FILE])
        positives, exposures, days = _read_samples(files, users, ads, self.exposures)
        users = users.join(positives, left_on="userid", right_on="user", how="semi")
        pool = ads.join(positives, left_on="adgroup_id", right_on="item", how="semi")
        features = [c.name for c in _PROFILE_COLUMNS if c.name not in ("userid", _LEVEL)]
        return assemble.Dataset(
            name=read.label(self.NAME, files[SAMPLES_FILE].parent),
            scenarios=tuple(f"A{i + 1}" for i in range(len(self.levels))),
            users=entities.Table(users, key="userid", sparse=tuple(features)),
            items=entities.Table(pool, key="adgroup_id", sparse=_AD_SPARSE, log_dense=("price",)),
            positives=positives,
            days=days,
            clock=clocks.Clock(BEIJING_S),
            exposures=exposures,
            behavior=events.BehaviorLog(
                "behavior",
                ("category", "brand"),
                lambda: _iterate_behaviors(files[BEHAVIORS_FILE], users["userid"]),
            ),
            # Behaviours reach further than the clicked ads: to all that is advertised.
            extra_values={"category": ads["category"], "brand": ads["brand"]},
        )

    def _read_users(self, path: pathlib.Path) -> pl.DataFrame:
        """The profiles of the users that live in a scenario, which becomes a column."""
        users = read.read(path, _PROFILE_COLUMNS)
        columns.check_unique(path, users, "userid")
        scenario = pl.col(_LEVEL).replace_strict(
            list(self.levels), list(range(len(self.levels))), default=None, return_dtype=pl.Int64
        )
        return users.with_columns(scenario.alias("scenario")).drop_nulls("scenario")


def find_files(raw_dir: str) -> dict[str, pathlib.Path]:
    """The four official files by name, plain or compressed.

    Raises:
      ValueError: In one message: which are missing, where they are published, and what runs
        without them.
    """
    names = (SAMPLES_FILE, ADS_FILE, PROFILES_FILE, BEHAVIORS_FILE)
    found = {name: read.find(raw_dir, name) if raw_dir else None for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        place = f"in data.raw_dir={raw_dir!r}" if raw_dir else "because data.raw_dir is empty"
        raise ValueError(
            f"Alimama: missing {', '.join(missing)} (or the same with .gz) {place}; they are "
            'published as Tianchi data set 56, "Ali_Display_Ad_Click" '
            "(https://tianchi.aliyun.com/dataset/56); pass their folder with "
            "--config.data.raw_dir=FOLDER, or run the synthetic twin instead with "
            "--config configs/alimama.py:synthetic"
        )
    return {name: path for name, path in found.items() if path}


def read_ads(path: pathlib.Path) -> pl.DataFrame:
    """`ad_feature`, one row an ad; a missing brand is null."""
    ads = read.read(path, _AD_COLUMNS)
    columns.check_unique(path, ads, "adgroup_id")
    return ads.rename({"cate_id": "category", "campaign_id": "campaign"})


def _read_samples(
    files: dict[str, pathlib.Path], users: pl.DataFrame, ads: pl.DataFrame, exposures: bool
) -> tuple[pl.DataFrame, pl.DataFrame | None, list[datetime.date]]:
    """Of users that live in a scenario clicks and, if asked for, exposures; all days of the log."""
    path = files[SAMPLES_FILE]
    scenario = users.select(pl.col("userid").alias("user"), "scenario")
    day = pl.from_epoch(pl.col("time_stamp") + BEIJING_S, time_unit="s").dt.date()
    found: dict[int, list[pl.DataFrame]] = {1: [], 0: []} if exposures else {1: []}
    days = set()
    for frame in read.iterate(path, _SAMPLE_COLUMNS):
        columns.check(
            path, frame, pl.col("nonclk") + pl.col("clk") != 1, "nonclk", "the opposite of clk"
        )
        days.update(frame.select(day.unique()).to_series().to_list())
        for clk, parts in found.items():
            rows = frame.filter(pl.col("clk") == clk)
            kept = rows.join(scenario, on="user", maintain_order="left")
            columns.check_known(path, kept, "adgroup_id", ads["adgroup_id"], files[ADS_FILE].name)
            parts.append(
                kept.select("user", "scenario", item="adgroup_id", time_s="time_stamp", day=day)
            )
    return pl.concat(found[1]), pl.concat(found[0]) if exposures else None, sorted(days)


def _iterate_behaviors(path: pathlib.Path, users: pl.Series) -> Iterator[pl.DataFrame]:
    """Behaviours of these users at possible times, block by block."""
    kept = pl.DataFrame({"user": users})
    possible = pl.col("time_stamp").is_between(BEHAVIORS_START_S, _SAMPLES_STOP_S, closed="left")
    for frame in read.iterate(path, _BEHAVIOR_COLUMNS):
        yield (
            frame.filter(possible)
            .join(kept, on="user", how="semi")
            .select("user", time_s="time_stamp", category="cate", brand="brand")
        )
