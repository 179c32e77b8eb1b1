"""KuaiRand-Pure: the official files, or the twelve days that are shipped with the package.

Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos",
CIKM 2022. A scenario is a tab of the app, a positive is a click on the standard log, and a day is
the log's `date` (Beijing); `time_ms` of 0.9 % of the rows lies on the neighbouring day.

**Deviation:** the paper that this project follows states neither which tabs its scenarios are nor
its split; tabs 1, 4, 2, 0 and a split by day are this project's reading of it.
"""

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import polars as pl

from dsmoe_jax import runlog
from dsmoe_jax.config import schema
from dsmoe_jax.data.prepare import assemble, clocks, columns, entities, read, standard

SAMPLE_DIR = pathlib.Path(__file__).resolve().parent.parent / "sample"
USERS_FILE = "user_features_pure.csv"
ITEMS_FILE = "video_features_basic_pure.csv"
HISTORY_FILE = "user_history_until_4_24_pure.csv"
LOG_PATTERN = "log_standard_*_pure.csv"
BEIJING_S = 8 * 3600
# The first day that `HISTORY_FILE` does not cover.
_HISTORY_END = datetime.date(2022, 4, 25)
_NUM_TABS = 15
_DURATION_BUCKETS = 20

_LOG_COLUMNS = (
    columns.Column("user_id", "int", low=0),
    columns.Column("video_id", "int", low=0),
    columns.Column("date", "yyyymmdd"),
    columns.Column("time_ms", "int", low=1, high=2**31 * 1000 - 2000),
    columns.Column("is_click", "int", low=0, high=1),
    columns.Column("tab", "int", low=0, high=_NUM_TABS - 1),
)
_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_RANGES = tuple(f"{name}_range" for name in _COUNTS)
_ONEHOTS = tuple(f"onehot_feat{i}" for i in range(18))
_USER_SPARSE = (
    "user_active_degree", "is_live_streamer", "is_video_author", *_RANGES, *_ONEHOTS
)  # fmt: skip
_USER_COLUMNS = (
    columns.Column("user_id", "int", low=0),
    columns.Column("user_active_degree", "str", nullable=True),
    columns.Column("is_live_streamer", "code", nullable=True),
    columns.Column("is_video_author", "code", nullable=True),
    *(columns.Column(name, "str", nullable=True) for name in _RANGES),
    *(columns.Column(name, "float", nullable=True, low=0) for name in _COUNTS),
    *(columns.Column(name, "code", nullable=True) for name in _ONEHOTS),
)
_SIZES = ("video_duration", "server_width", "server_height")
_ITEM_CODES = ("author_id", "music_id", "music_type")
_ITEM_TEXTS = ("video_type", "upload_dt", "upload_type")
_ITEM_SPARSE = (
    "author_id", "video_type", "upload_dt", "upload_type", "music_id", "music_type",
    "video_duration_bucket",
)  # fmt: skip
_ITEM_COLUMNS = (
    columns.Column("video_id", "int", low=0),
    *(columns.Column(name, "code", nullable=True) for name in _ITEM_CODES),
    *(columns.Column(name, "str", nullable=True) for name in _ITEM_TEXTS),
    *(columns.Column(name, "float", nullable=True, low=0) for name in _SIZES),
    columns.Column("tag", "str", nullable=True),
)


@dataclasses.dataclass
class KuaiRandConfig(schema.DataConfig):
    """KuaiRand-Pure, any subset of its standard logs.

    `raw_dir` holds `user_features_pure`, `video_features_basic_pure`, one or more
    `log_standard_*_pure` and, optionally, `user_history_until_4_24_pure`, each as `.csv` or
    `.csv.gz`; empty means the packaged twelve days. The history file (clicks before 04-25, without
    time or tab) is left out where the logs themselves reach back past 04-25.

    Exposures are all other rows of all tabs, clicks in tabs that are no scenario among them; those
    from before the log are what `watch_seq` holds beside long views.

    Attributes:
      tabs: The `tab` of each scenario; scenario i is named K<i + 1>.
    """

    tabs: tuple[int, ...] = (1, 4, 2, 0)

    # What results are labelled with.
    NAME: ClassVar[str] = "KuaiRand-Pure"

    def prepare(self, store_dir: str) -> None:
        """Writes the store; see `schema.DataConfig.prepare`."""
        if not self.tabs or len(set(self.tabs)) != len(self.tabs):
            raise ValueError(f"data.tabs: expected distinct tabs, got {self.tabs!r}")
        if not all(0 <= tab < _NUM_TABS for tab in self.tabs):
            raise ValueError(f"data.tabs: expected tabs from 0 to {_NUM_TABS - 1}, got {self.tabs}")
        files = find_files(pathlib.Path(self.raw_dir) if self.raw_dir else SAMPLE_DIR)
        inputs = [files.users, files.items, *files.logs]
        inputs += [files.history] if files.history else []
        assemble.prepare(self, store_dir, inputs, lambda: self._load(files))

    def _load(self, files: "Files") -> assemble.Dataset:
        users = read_users(files.users)
        items, edges = read_items(files.items, standard.read(self.standard_file).edges)
        positives, exposures, days = self._read_logs(files, users, items)
        pre_history = pre_exposures = None
        if files.history and min(days) >= _HISTORY_END:
            pre_history = read_history(files.history, users, items, files)
            if self.exposures:
                watched = read_history(files.history, users, items, files, "watch_seq")
                pre_exposures = watched.join(
                    pre_history, on=["user", "item"], how="anti", maintain_order="left"
                )
        elif files.history:
            runlog.say(f"{files.history} is left out: the logs begin on {min(days)}")
        return assemble.Dataset(
            name=read.label(self.NAME, files.users.parent),
            scenarios=tuple(f"K{i + 1}" for i in range(len(self.tabs))),
            users=entities.Table(users, key="user_id", sparse=_USER_SPARSE, log_dense=_COUNTS),
            items=entities.Table(
                items, key="video_id", sparse=_ITEM_SPARSE, log_dense=_SIZES, bags=("tag",)
            ),
            positives=positives,
            days=days,
            clock=clocks.Clock(BEIJING_S),
            pre_history=pre_history,
            exposures=exposures if self.exposures else None,
            pre_exposures=pre_exposures,
            raw_forms={
                "tag": {"separator": ","},
                "video_duration_bucket": {"column": "video_duration", "edges": edges.tolist()},
            },
        )

    def _read_logs(
        self, files: "Files", users: pl.DataFrame, items: pl.DataFrame
    ) -> tuple[pl.DataFrame, pl.DataFrame, list[datetime.date]]:
        """The clicks of the kept tabs, other rows that are asked for, and all days of the logs.

        Both are without repetitions.
        """
        kept = (pl.col("is_click") == 1) & pl.col("tab").is_in(self.tabs)
        rows, days = [], set()
        for path in files.logs:
            for frame in read.iterate(path, _LOG_COLUMNS):
                columns.check_known(path, frame, "user_id", users["user_id"], files.users.name)
                columns.check_known(path, frame, "video_id", items["video_id"], files.items.name)
                days.update(frame["date"].unique().to_list())
                rows.append(frame if self.exposures else frame.filter(kept))
        event = ["user_id", "video_id", "time_ms", "tab"]
        scenario = pl.col("tab").replace_strict(
            self.tabs, list(range(len(self.tabs))), default=None, return_dtype=pl.Int64
        )
        # The logs repeat events; where the repetitions disagree, a click counts and the first date.
        distinct = (
            pl.concat(rows)
            .sort(*event, -pl.col("is_click"), "date")
            .unique(event, keep="first", maintain_order=True)
        )
        positives, exposures = (
            distinct.filter(chosen).select(
                user="user_id",
                item="video_id",
                scenario=scenario,
                time_s=pl.col("time_ms") // 1000,
                day="date",
            )
            for chosen in (kept, ~kept)
        )
        return positives, exposures, sorted(days)


@dataclasses.dataclass
class KuaiRandArchiveConfig(KuaiRandConfig):
    """The official archive: `raw_dir` must be given, the packaged rows do not stand in for it."""

    def prepare(self, store_dir: str) -> None:
        """Writes the store; see `schema.DataConfig.prepare`."""
        if not self.raw_dir:
            raise ValueError(
                "data.raw_dir: expected the folder of KuaiRand-Pure's files, got none; they are "
                "published at https://kuairand.com (KuaiRand-Pure.tar.gz, folder data); the "
                "packaged rows run with --config configs/kuairand.py:sample"
            )
        super().prepare(store_dir)


class Files(NamedTuple):
    """The official files found in a folder."""

    users: pathlib.Path
    items: pathlib.Path
    logs: list[pathlib.Path]
    history: pathlib.Path | None


def find_files(folder: pathlib.Path) -> Files:
    """Finds the official files, plain or compressed.

    Raises:
      ValueError: Naming the folder and what is missing or twice in it.
    """
    if not folder.is_dir():
        raise ValueError(
            f"data.raw_dir: expected a folder with KuaiRand-Pure's files, got {folder}; "
            "leave it empty for the packaged rows"
        )
    found_logs = (*folder.glob(LOG_PATTERN), *folder.glob(f"{LOG_PATTERN}.gz"))
    names = {path.name.removesuffix(".gz") for path in found_logs}
    logs = [path for name in sorted(names) if (path := read.find(folder, name))]
    found = {name: read.find(folder, name) for name in (USERS_FILE, ITEMS_FILE)}
    missing = [f"{name}[.gz]" for name, path in found.items() if path is None]
    missing += [] if logs else [f"{LOG_PATTERN}[.gz]"]
    users, items = found[USERS_FILE], found[ITEMS_FILE]
    if missing or users is None or items is None:
        raise ValueError(
            f"{folder}: expected KuaiRand-Pure's files, missing {', '.join(missing)}; "
            "they are published at https://kuairand.com (KuaiRand-Pure.tar.gz, folder data)"
        )
    return Files(users, items, logs, read.find(folder, HISTORY_FILE))


def read_users(path: pathlib.Path) -> pl.DataFrame:
    """`user_features_pure`, one row a user; unknown codes are null."""
    users = read.read(path, _USER_COLUMNS)
    columns.check_unique(path, users, "user_id")
    streamer = pl.col("is_live_streamer")
    # -124 is the data set's code for unknown.
    return users.with_columns(pl.when(streamer != -124).then(streamer))


def read_items(
    path: pathlib.Path, known: Mapping[str, list[float]]
) -> tuple[pl.DataFrame, np.ndarray]:
    """`video_features_basic_pure`, one row a video, with a bucketed duration and tags as lists.

    Beside it the bounds between the buckets, which are those `known` of that feature, if any are.
    """
    items = read.read(path, _ITEM_COLUMNS)
    columns.check_unique(path, items, "video_id")
    name = "video_duration_bucket"
    if name in known:
        edges = np.asarray(known[name])
    else:
        edges = entities.quantile_edges(items["video_duration"], _DURATION_BUCKETS)
    duration = entities.bucket(items["video_duration"], edges)
    items = items.with_columns(duration.alias(name), _split_ids(path, items, "tag", ","))
    return items, edges


def read_history(
    path: pathlib.Path,
    users: pl.DataFrame,
    items: pl.DataFrame,
    files: Files,
    column: str = "long_watch_seq",
) -> pl.DataFrame:
    """Views from before the log, as `assemble.Dataset.pre_history`.

    `long_watch_seq` stands for clicks: nearly every long view was clicked.
    """
    wanted = columns.Column("user_id", "int", low=0), columns.Column(column, "str", nullable=True)
    history = read.read(path, wanted)
    columns.check_unique(path, history, "user_id")
    columns.check_known(path, history, "user_id", users["user_id"], files.users.name)
    flat = (
        history.with_columns(_split_ids(path, history, column, " "))
        .explode(column)
        .drop_nulls(column)
    )
    columns.check_known(path, flat, column, items["video_id"], files.items.name)
    return flat.select(user="user_id", item=column)


def _split_ids(path: pathlib.Path, frame: pl.DataFrame, column: str, separator: str) -> pl.Series:
    """A text column of ids joined by `separator` as a list column of integers."""
    ids = pl.col(column).str.split(separator).cast(pl.List(pl.Int64), strict=False)
    unreadable = ids.list.eval(pl.element().is_null()).list.any()
    columns.check(path, frame, unreadable, column, f"integers joined by {separator!r}")
    return frame.select(ids).to_series()
