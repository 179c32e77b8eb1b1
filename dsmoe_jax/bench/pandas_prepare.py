"""Alimama's preparation as one would write it in pandas: the yardstick of `bench.prepare`.

Owns the same arrays under the same names as a store that `data/prepare/alimama.py` writes, from
well-formed files: vectorised pandas throughout, whole tables in memory. It leaves out what is no
work on rows: checks of cells, hashes and the manifest.

Letters: as in `data/prepare/assemble.py`.
"""

import pathlib

import numpy as np
import pandas as pd

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import alimama

_USER_FIELDS = [
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
]
_ITEM_FIELDS = ["category", "campaign", "customer", "brand"]


def prepare(raw_dir: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the arrays of the four official files, uncompressed, into a new folder.

    One day validates and one tests.
    """
    folder.mkdir(parents=True)
    levels = alimama.AlimamaConfig().levels
    profiles = pd.read_csv(raw_dir / alimama.PROFILES_FILE).rename(columns=str.strip)
    scenario = profiles["new_user_class_level"].map({level: i for i, level in enumerate(levels)})
    profiles = profiles.assign(scenario=scenario).dropna(subset="scenario")
    profiles["scenario"] = profiles["scenario"].astype(np.int64)
    ads = pd.read_csv(raw_dir / alimama.ADS_FILE, na_values=["NULL"])
    ads = ads.rename(columns={"cate_id": "category", "campaign_id": "campaign"})
    clicks, days = _read_clicks(raw_dir, profiles)
    users = profiles[profiles["userid"].isin(clicks["user"])].sort_values("userid")
    items = ads[ads["adgroup_id"].isin(clicks["item"])].sort_values("adgroup_id")
    user_ids, item_ids = pd.Index(users["userid"]), pd.Index(items["adgroup_id"])
    clicks["user"] = user_ids.get_indexer(clicks["user"]) + 1
    clicks["item"] = item_ids.get_indexer(clicks["item"]) + 1
    order = ["user", "day", "time", "item", "scenario"]
    clicks = clicks.drop_duplicates().sort_values(order, ignore_index=True)
    pools = {name: ads if name in ("category", "brand") else items for name in _ITEM_FIELDS}
    vocabularies = {name: _vocabulary(users[name]) for name in _USER_FIELDS}
    vocabularies |= {name: _vocabulary(pool[name]) for name, pool in pools.items()}
    arrays = {f"vocabulary_{name}": np.append(-1, v) for name, v in vocabularies.items()}
    for side, table, fields in (("users", users, _USER_FIELDS), ("items", items, _ITEM_FIELDS)):
        key = "userid" if side == "users" else "adgroup_id"
        columns = [np.arange(1, len(table) + 1)]
        columns += [vocabularies[name].get_indexer(table[name]) + 1 for name in fields]
        arrays[f"{side}_sparse"] = _under_a_row_of_zeros(np.stack(columns, 1).astype(np.int32))
        arrays[f"{side}_raw_id"] = np.append(-1, table[key])
    arrays["users_dense"] = np.zeros((len(users) + 1, 0), np.float32)
    price = np.log1p(items["price"])
    price = ((price - price.mean()) / price.std(ddof=0)).to_numpy(np.float32)
    arrays["items_dense"] = _under_a_row_of_zeros(price[:, None])
    rows = _rows(clicks, days, arrays)
    behavior = _read_behavior(raw_dir, user_ids, vocabularies)
    _add_windows(rows, clicks, behavior, len(levels))
    columns = [c for c in rows["train"].columns if c not in ("day", "before_s")]
    arrays |= {name: frame[columns].to_numpy(np.int64) for name, frame in rows.items()}
    arrays["sequence_behavior"] = behavior[["category", "brand"]].to_numpy(np.int32)
    arrays["sequence_behavior_time"] = behavior["time"].to_numpy(np.int32)
    for name in ("history", "scenario_history"):
        # Users live in one scenario, so both hold the same.
        arrays[f"sequence_{name}"] = clicks[["item"]].to_numpy(np.int32)
        arrays[f"sequence_{name}_time"] = clicks["time"].to_numpy(np.int32)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _read_clicks(
    raw_dir: pathlib.Path, profiles: pd.DataFrame
) -> tuple[pd.DataFrame, list[np.int64]]:
    """Clicks of users with a scenario, raw ids, and all days."""
    columns = ["user", "time_stamp", "adgroup_id", "clk"]
    shown = pd.read_csv(raw_dir / alimama.SAMPLES_FILE, usecols=columns)
    shown["day"] = (shown["time_stamp"] + alimama.BEIJING_S) // store_lib.DAY_S
    days = sorted(shown["day"].unique())
    clicks = shown[shown["clk"] == 1].drop(columns="clk")
    clicks = clicks.merge(profiles[["userid", "scenario"]], left_on="user", right_on="userid")
    clicks = clicks.rename(columns={"time_stamp": "time", "adgroup_id": "item"})
    return clicks[["user", "scenario", "item", "time", "day"]], days


def _read_behavior(
    raw_dir: pathlib.Path, user_ids: pd.Index, vocabularies: dict[str, pd.Index]
) -> pd.DataFrame:
    """Distinct behaviours of known users at possible times, in ids, user-major."""
    columns = ["user", "time_stamp", "cate", "brand"]
    log = pd.read_csv(raw_dir / alimama.BEHAVIORS_FILE, usecols=columns, na_values=["NULL"])
    log = log.rename(columns={"time_stamp": "time", "cate": "category"})
    # The 22 days that end with the impressions.
    stop_s = 1_494_000_000 + 8 * store_lib.DAY_S
    log = log[(log["time"] >= stop_s - 22 * store_lib.DAY_S) & (log["time"] < stop_s)]
    log = log[log["user"].isin(user_ids)]
    log["user"] = user_ids.get_indexer(log["user"]) + 1
    for name in ("category", "brand"):
        log[name] = vocabularies[name].get_indexer(log[name]) + 1
    log = log[log["category"] > 0].drop_duplicates()
    return log.sort_values(["user", "time", "category", "brand"], ignore_index=True)


def _rows(
    clicks: pd.DataFrame, days: list[np.int64], arrays: dict[str, np.ndarray]
) -> dict[str, pd.DataFrame]:
    """Training examples and queries; adds the queries' relevant and seen items to the arrays."""
    columns = ["user", "scenario", "item", "time", "day"]
    train = clicks.loc[clicks["day"] < days[-2], columns]
    rows = {"train": train.rename(columns={"time": "time_s"})}
    rows["train"]["before_s"] = rows["train"]["time_s"]
    for split, day in (("validation", days[-2]), ("test", days[-1])):
        seen = clicks.loc[clicks["day"] < day, ["user", "item"]].drop_duplicates()
        held = clicks.loc[clicks["day"] == day, ["user", "scenario", "item"]].drop_duplicates()
        held = held.merge(seen, how="left", on=["user", "item"], indicator=True)
        fresh = held[held["_merge"] == "left_only"].sort_values(["user", "scenario", "item"])
        queries = fresh[["user", "scenario"]].drop_duplicates(ignore_index=True)
        past = queries.merge(seen, how="left", on="user").sort_values(["user", "scenario", "item"])
        for kind, found in (("relevant", fresh), ("seen", past.dropna(subset="item"))):
            count = found.groupby(["user", "scenario"]).size()
            count = count.reindex(pd.MultiIndex.from_frame(queries), fill_value=0)
            arrays[f"{split}_{kind}_indptr"] = np.append(0, count.cumsum()).astype(np.int64)
            arrays[f"{split}_{kind}"] = found["item"].to_numpy(np.int32)
        arrays[f"{split}_cold"] = ~queries["user"].isin(train["user"]).to_numpy()
        start_s = day * store_lib.DAY_S - alimama.BEIJING_S
        rows[f"{split}_queries"] = queries.assign(
            item=0, time_s=start_s, day=day - 1, before_s=start_s
        )
    return rows


def _add_windows(
    rows: dict[str, pd.DataFrame], clicks: pd.DataFrame, behavior: pd.DataFrame, num_scenarios: int
) -> None:
    """Adds `<sequence>_start` and `_stop`, the events strictly before each row."""
    for name, frame in rows.items():
        start, stop, end = _window(frame, clicks)
        frame = frame.assign(history_start=start, history_stop=stop)
        for s in range(num_scenarios):
            # Empty windows of the other scenarios lie before or after the user's events.
            own = frame["scenario"] == s
            place = np.where(frame["scenario"] < s, end, start)
            frame[f"scenario_history_start_{s}"] = place
            frame[f"scenario_history_stop_{s}"] = np.where(own, stop, place)
        start, stop, _ = _window(frame, behavior)
        rows[name] = frame.assign(behavior_start=start, behavior_stop=stop)


def _window(frame: pd.DataFrame, events: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First event of each row's user, one past the last before the row, one past the last."""
    count = events.groupby("user").size()
    count = count.reindex(range(1, max(count.index.max(), frame["user"].max()) + 1), fill_value=0)
    end = frame["user"].map(count.cumsum()).to_numpy()
    start = end - frame["user"].map(count).to_numpy()
    position = events[["user", "time"]].assign(position=np.arange(len(events)))
    wanted = frame[["user", "before_s"]].assign(row=np.arange(len(frame))).sort_values("before_s")
    found = pd.merge_asof(
        wanted,
        position.sort_values("time", kind="stable"),
        left_on="before_s",
        right_on="time",
        by="user",
        allow_exact_matches=False,
    ).sort_values("row")
    stop = (found["position"] + 1).fillna(pd.Series(start, found.index)).to_numpy(np.int64)
    return start, np.maximum(stop, start), end


def _vocabulary(values: pd.Series) -> pd.Index:
    """Distinct values but null, ascending; value i has id i + 1."""
    return pd.Index(np.sort(values.dropna().unique()).astype(np.int64))


def _under_a_row_of_zeros(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, values.shape[1]), values.dtype), values])
