"""A synthetic twin of KuaiRand-Pure: the official files, at any size, with simulated preferences.

Owns: the log files. Columns, tab shares and click rates, duplicates and dates are those of the
official rows; who clicks what follows `data/synthetic/tastes.py`. The two feature files come from
`data/synthetic/kuairand_tables.py`. Days are generated one at a time, so memory holds one day's
rows, the users' state and the (user, video) pairs already shown. Reading the files is
`kuairand.py`'s.
"""

import dataclasses
import datetime
import pathlib
from typing import ClassVar

import numpy as np
import polars as pl

from dsmoe_jax import runlog
from dsmoe_jax.data.prepare import kuairand
from dsmoe_jax.data.synthetic import files, kuairand_tables, tastes

OFFICIAL_IMPRESSIONS = 1_141_112 + 295_497
OFFICIAL_RANDOM_IMPRESSIONS = 1_186_059

# Rows of each tab 0..14 after de-duplication, and the share of them that was clicked.
_TAB_ROWS = np.array([
    17705.0, 150584, 5769, 289, 11826, 280, 5128, 114, 970, 128, 54, 203, 448, 73, 12
])  # fmt: skip
_TAB_CLICK_RATE = np.array([
    0.0855, 0.4944, 0.4755, 0.0242, 0.5972, 0.2555, 0.1443, 0.386,
    0.0423, 0.99, 0.999, 0.001, 0.1272, 0.7123, 0.001,
])  # fmt: skip
# Rows of these tabs appear twice, nearly always.
_DOUBLED_TABS = (5, 6)
_DOUBLED_SHARE = 0.88
# Concentration of the users' own tab mixes around the overall one: small means loyal to one tab.
_TAB_CONCENTRATION = 1.5
# Minutes between an event and the server's date and hour, on average.
_DELAY_S = 13 * 60

_FIRST_DAY = datetime.date(2022, 4, 8)
_NUM_DAYS = 31
# The first log file holds fourteen days, the second the other seventeen.
_FILE_DAYS = 14
_NUM_CREATORS = 2_000
_RECENT = 10


@dataclasses.dataclass
class SyntheticKuaiRandConfig(files.Generated, kuairand.KuaiRandConfig):
    """A generated twin of KuaiRand-Pure, read by the same loader.

    `raw_dir` is where the files are generated; empty means beside the store. Files in place are
    reused when these settings are unchanged. The official size is num_users=27285,
    num_items=7583, num_impressions=1436609.

    Attributes:
      num_users: Rows of the user file.
      num_items: Rows of the video file.
      num_impressions: Rows of the two standard logs, to within a few per cent.
      generator_seed: Decides every byte of the files.
    """

    num_users: int = 4_000
    num_items: int = 2_000
    num_impressions: int = 200_000
    generator_seed: int = 0

    TITLE: ClassVar[str] = "KuaiRand-Pure"
    NOTE: ClassVar[str] = (
        "Simulated: users' and videos' taste; a rank-4 taste shift per tab; video popularity per "
        "tab; and a video is clicked more if its creator, one of up to 2,000 hidden groups of "
        "videos, is among the creators of the user's last 10 clicks before that day. Tab shares, "
        "click rates per tab, duplicates, dates, nulls and the number of distinct feature values "
        "imitate the official files; log_random's click rate is a guess. The statistics file "
        "(video_features_statistic_pure.csv) is not generated: it leaks the test days and no "
        "loader reads it."
    )

    def write(self, folder: pathlib.Path) -> None:
        """Writes three log files and two feature files into `folder`.

        Raises:
          ValueError: If a size is too small for the tables' distinct values.
        """
        files.check_least(self, num_users=200, num_items=200, num_impressions=2000)
        rng = files.random_stream(self.generator_seed, "creators")
        num_creators = min(_NUM_CREATORS, self.num_items // 2)
        preferences = tastes.make_preferences(
            self.generator_seed,
            share_S=_TAB_ROWS,
            num_users=self.num_users,
            creator_V=files.covering_codes(rng, self.num_items, num_creators, exponent=0.3),
        )
        users = kuairand_tables.make_users(self.generator_seed, preferences)
        users.write_csv(folder / kuairand.USERS_FILE)
        videos = kuairand_tables.make_videos(self.generator_seed, preferences)
        videos.write_csv(folder / kuairand.ITEMS_FILE)
        duration_V = videos["video_duration"].fill_null(0.0).cast(pl.Int64).to_numpy()
        self._write_standard(folder, preferences, duration_V)
        self._write_random(folder, preferences, duration_V)

    def _write_standard(
        self, folder: pathlib.Path, preferences: tastes.Preferences, duration_V: np.ndarray
    ) -> None:
        feed = _Feed(self, preferences)
        rows_D = _rows_per_day(self.num_impressions)
        names = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
        with (folder / names[0]).open("wb") as early, (folder / names[1]).open("wb") as late:
            for day in runlog.bar(range(_NUM_DAYS), desc="generate days", delay=2):
                rng = files.random_stream(self.generator_seed, "standard", day)
                shown = feed.draw_day(rng, int(rows_D[day]))
                frame = _to_frame(rng, day, duration_V, *shown)
                again = np.isin(shown[1], _DOUBLED_TABS) & (rng.random(len(frame)) < _DOUBLED_SHARE)
                frame = frame.select(pl.all().repeat_by(pl.Series(1 + again)).explode())
                files.append_csv(early if day < _FILE_DAYS else late, frame)

    def _write_random(
        self, folder: pathlib.Path, preferences: tastes.Preferences, duration_V: np.ndarray
    ) -> None:
        """The log of randomly exposed videos: uniform users and videos, is_rand = 1, tab 1."""
        days = range(_FILE_DAYS, _NUM_DAYS)
        total = files.scaled(
            OFFICIAL_RANDOM_IMPRESSIONS, OFFICIAL_IMPRESSIONS, self.num_impressions
        )
        rows_D = files.spread_counts(np.ones(len(days)), total)
        with (folder / "log_random_4_22_to_5_08_pure.csv").open("wb") as file:
            for day, rows in zip(days, rows_D.tolist(), strict=True):
                rng = files.random_stream(self.generator_seed, "random", day)
                user_B = rng.integers(0, self.num_users, rows)
                item_B = rng.integers(0, self.num_items, rows)
                tab_B = np.ones(rows, np.int64)
                vector_BD = tastes.user_vectors(preferences, user_B, tab_B)
                utility_B = np.einsum("bd,bd->b", vector_BD, preferences.item_VD[item_B])
                rate_S = np.full(len(_TAB_ROWS), 0.2)
                click_B = tastes.draw_clicks(rng, utility_B, tab_B, rate_S)
                time_ms_B = np.sort(files.draw_time_of_day_ms(rng, rows))
                frame = _to_frame(rng, day, duration_V, user_B, tab_B, item_B, click_B, time_ms_B)
                files.append_csv(file, frame.with_columns(is_rand=pl.lit(1)))


def _rows_per_day(num_impressions: int) -> np.ndarray:
    """Rows before doubling: the first file has nearly five times the rows of the second a day."""
    share = _TAB_ROWS / _TAB_ROWS.sum()
    doubling = 1.0 + _DOUBLED_SHARE * share[list(_DOUBLED_TABS)].sum()
    early, late = 1_141_112 / _FILE_DAYS, 295_497 / (_NUM_DAYS - _FILE_DAYS)
    weight_D = np.where(np.arange(_NUM_DAYS) < _FILE_DAYS, early, late)
    return files.spread_counts(weight_D, round(num_impressions / doubling))


class _Feed:
    """Day after day, who is shown what and clicks; remembers what users saw and clicked."""

    def __init__(self, size: SyntheticKuaiRandConfig, preferences: tastes.Preferences):
        rng = files.random_stream(size.generator_seed, "feed")
        self._preferences = preferences
        self._exposures = tastes.Exposures(preferences, follow_share=0.2)
        self._activity_U = rng.standard_gamma(1.5, size.num_users) + 0.02
        share = _TAB_ROWS / _TAB_ROWS.sum()
        mix_US = rng.standard_gamma(_TAB_CONCENTRATION * share[None], (size.num_users, len(share)))
        self._tab_edge_US = np.cumsum(mix_US / mix_US.sum(1, keepdims=True), axis=1)
        self._recent_UL = np.full((size.num_users, _RECENT), -1, np.int32)
        self._shown = np.empty(0, np.int64)

    def draw_day(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
        """(user, tab, item, is_click, ms since the day began) of a day, in the order of time.

        A user is not shown a video again, as hardly ever in the official rows; so a day has fewer
        rows than asked for once a user has seen most of what is popular.
        """
        # Spare rows make up for the videos shown before.
        drawn = rows + rows // 4
        user_B = files.draw_shares(rng, self._activity_U, drawn)
        position_B = rng.random(drawn)
        tab_B = (position_B[:, None] >= self._tab_edge_US[user_B]).sum(1)
        tab_B = np.minimum(tab_B, len(_TAB_ROWS) - 1)
        item_B, utility_B = self._exposures.draw(rng, user_B, tab_B, self._recent_UL[user_B])
        kept = self._keep_new(user_B * len(self._preferences.item_VD) + item_B, rows)
        user_B, tab_B, item_B = user_B[kept], tab_B[kept], item_B[kept]
        click_B = tastes.draw_clicks(rng, utility_B[kept], tab_B, _TAB_CLICK_RATE)
        # Rows are independent given the day before, so times can be dealt out in order.
        time_ms_B = np.sort(files.draw_time_of_day_ms(rng, len(user_B)))
        self._recent_UL = tastes.update_recent(
            self._recent_UL, user_B[click_B], self._preferences.creator_V[item_B[click_B]]
        )
        return user_B, tab_B, item_B, click_B, time_ms_B

    def _keep_new(self, pair_B: np.ndarray, rows: int) -> np.ndarray:
        """The first `rows` rows whose (user, video) pair is new, ascending; remembers the pairs."""
        unique, first = np.unique(pair_B, return_index=True)
        place = np.searchsorted(self._shown, unique)
        known = np.zeros(len(unique), bool)
        inside = place < len(self._shown)
        known[inside] = self._shown[place[inside]] == unique[inside]
        kept = np.sort(first[~known])[:rows]
        shown = np.sort(pair_B[kept])
        self._shown = np.insert(self._shown, np.searchsorted(self._shown, shown), shown)
        return kept


def _to_frame(
    rng: np.random.Generator,
    day: int,
    duration_V: np.ndarray,
    user_B: np.ndarray,
    tab_B: np.ndarray,
    item_B: np.ndarray,
    click_B: np.ndarray,
    time_ms_B: np.ndarray,
) -> pl.DataFrame:
    """The 19 columns of a log for one day's rows."""
    rows = len(user_B)
    date = _FIRST_DAY + datetime.timedelta(days=day)
    midnight = datetime.datetime(date.year, date.month, date.day, tzinfo=datetime.UTC)
    midnight_s = int(midnight.timestamp()) - kuairand.BEIJING_S
    # The server dates a row a while after the event, so few events belong to the day before.
    delay_ms_B = (1000 * _DELAY_S * rng.standard_exponential(rows)).astype(np.int64)
    long_B = rng.random(rows) < np.where(click_B, 0.70, 0.0018)
    duration_B = duration_V[item_B]
    play_B = _draw_play_ms(rng, click_B, long_B, duration_B)

    def flag(clicked: float, other: float) -> np.ndarray:
        return (rng.random(rows) < np.where(click_B, clicked, other)).astype(np.int64)

    def stay_ms(share: float, mean_s: float) -> np.ndarray:
        stay = 1000 * mean_s * rng.standard_exponential(rows) * (rng.random(rows) < share)
        return np.minimum(stay, 300_000).astype(np.int64)

    return pl.DataFrame(
        {
            "user_id": user_B,
            "video_id": item_B,
            "date": np.full(rows, date.year * 10_000 + date.month * 100 + date.day),
            "hourmin": time_ms_B // 3_600_000 * 100,
            "time_ms": midnight_s * 1000 + time_ms_B - delay_ms_B,
            "is_click": click_B.astype(np.int64),
            "is_like": flag(0.0319, 0.0055),
            "is_follow": flag(0.0026, 0.0003),
            "is_comment": flag(0.0056, 0.0001),
            "is_forward": flag(0.0017, 0.0001),
            "is_hate": flag(0.0009, 0.0008),
            "long_view": long_B.astype(np.int64),
            "play_time_ms": play_B,
            "duration_ms": duration_B,
            "profile_stay_time": stay_ms(0.0001, 20.0),
            "comment_stay_time": stay_ms(0.0434, 10.0),
            "is_profile_enter": flag(0.0389, 0.0023),
            "is_rand": np.zeros(rows, np.int64),
            "tab": tab_B,
        }
    )


def _draw_play_ms(
    rng: np.random.Generator, click_B: np.ndarray, long_B: np.ndarray, duration_B: np.ndarray
) -> np.ndarray:
    """Milliseconds played: seconds without a click, a good part of the video with one."""
    rows = len(click_B)
    length_B = np.where(duration_B > 0, duration_B, 60_000)
    part_B = np.where(long_B, 0.5 + 0.6 * rng.random(rows), 0.05 + 0.4 * rng.random(rows))
    glance_B = np.where(rng.random(rows) < 0.17, 0.0, 1_500 * rng.standard_exponential(rows))
    return np.where(click_B | long_B, length_B * part_B, glance_B).astype(np.int64)
