"""User and video feature files in the layout of KuaiRand-Pure: columns, values, shares, nulls.

Shares are those of the published feature files (Gao et al., "KuaiRand", CIKM 2022), whose licence
(CC BY-SA 4.0) asks for this attribution; no row of them is here.
"""

import numpy as np
import polars as pl

from dsmoe_jax.data.synthetic import files, tastes

OFFICIAL_USERS = 27_285
OFFICIAL_VIDEOS = 7_583

_DEGREES = {
    "full_active": 17959,
    "high_active": 6158,
    "middle_active": 2133,
    "2_14_day_new": 635,
    "low_active": 300,
    "single_low_active": 68,
    "30day_retention": 15,
    "day_new": 11,
    "UNKNOWN": 6,
}
# Of each count: where its ranges start (and the largest value), the share below, the ranges' names.
_COUNTS = {
    "follow_user_num": (
        [0, 1, 11, 51, 101, 151, 251, 501, 5004],
        [0, 0.0069, 0.0706, 0.2504, 0.3971, 0.4936, 0.6215, 0.7819, 1],
        "0 (0,10] (10,50] (50,100] (100,150] (150,250] (250,500] 500+",
    ),
    "fans_user_num": (
        [0, 1, 10, 100, 1_000, 5_000, 10_000, 100_000, 1_000_000, 1_986_250],
        [0, 0.0424, 0.2376, 0.6212, 0.9387, 0.9922, 0.9963, 0.9994, 0.99993, 1],
        "0 [1,10) [10,100) [100,1k) [1k,5k) [5k,1w) [1w,10w) [10w,100w) [100w,1000w)",
    ),
    "friend_user_num": (
        [0, 1, 5, 30, 60, 120, 250, 4996],
        [0, 0.1237, 0.3168, 0.5952, 0.6997, 0.8005, 0.8838, 1],
        "0 [1,5) [5,30) [30,60) [60,120) [120,250) 250+",
    ),
    "register_days": (
        [8, 15, 31, 61, 91, 181, 366, 731, 3625],
        [0, 0.0001, 0.0054, 0.0194, 0.0338, 0.0722, 0.1374, 0.2648, 1],
        "8-14 15-30 31-60 61-90 91-180 181-365 366-730 730+",
    ),
}
# Rows of each code of onehot_feat0, 1, ...; an int stands for a Zipf curve over that many codes.
_ONEHOT: list[list[int] | int] = [
    [11921, 15364],
    [848, 6006, 5096, 3432, 7221, 2759, 1923],
    50,
    1471,
    [3039, 10083, 5061, 3184, 2021, 1062, 862, 379, 401, 270, 9, 16, 14, 8, 2],
    [27126, *[5] * 33],
    [14731, 12395, 159],
    118,
    454,
    [260, 6082, 1427, 6233, 3177, 4019, 6087],
    [4308, 36, 7973, 10904, 4064],
    [20333, 264, 6685, 2, 1],
    [7337, 19234],
    [24759, 1812],
    [23406, 3165],
    [25968, 603],
    [25498, 1073],
    [26186, 385],
]
# Exponent of the Zipf curve of the columns that are given by their number of codes only.
_ONEHOT_EXPONENT = 0.6

_UPLOAD_TYPES = {
    "LongImport": 2925,
    "Web": 2416,
    "ShortImport": 917,
    "Kmovie": 879,
    "LongPicture": 143,
    "UNKNOWN": 80,
    "PictureSet": 73,
    "LongCamera": 64,
    "ShortCamera": 43,
    "ShareFromOtherApp": 29,
    "FollowShoot": 10,
    "AiCutVideo": 2,
    "PhotoCopy": 1,
    "LipsSync": 1,
}
_SIZES = np.array(
    [(720, 1280), (1280, 720), (960, 720), (720, 1282), (720, 960), (720, 720), (1080, 1440)]
)
_SIZE_SHARE = np.array([5090.0, 1367, 179, 114, 90, 59, 48])
_TAG_ROWS = np.array([
    1446.0, 732, 675, 606, 489, 428, 428, 419, 400, 383, 296, 254, 245, 220, 206, 181, 177, 177,
    145, 144, 136, 102, 102, 99, 89, 82, 75, 58, 54, 46, 43, 41, 41, 40, 37, 35, 33, 33, 33,
    31, 16, 11, 10, 5, 4, 3,
])  # fmt: skip
_DURATION_EDGE_MS = np.array([5e3, 10724, 14583, 31966, 81241, 148216, 237900, 510066, 1177720])
_DURATION_SHARE = np.array([0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1])


def make_users(seed: int, preferences: tastes.Preferences) -> pl.DataFrame:
    """The rows of user_features_pure.csv: 31 columns, one row per user.

    The onehot features follow the users' preferences.
    """
    rng = files.random_stream(seed, "users")
    num_users, num_dims = preferences.user_UD.shape
    columns: dict[str, np.ndarray | pl.Series] = {"user_id": np.arange(num_users)}
    degree_U = files.deal(rng, np.array([*_DEGREES.values()], np.float64), num_users)
    columns["user_active_degree"] = files.take(list(_DEGREES), degree_U)
    columns["is_lowactive_period"] = np.zeros(num_users, np.int64)
    columns["is_live_streamer"] = np.where(rng.random(num_users) < 0.7743, -124, 1)
    columns["is_video_author"] = np.where(rng.random(num_users) < 0.8164, 1, 0)
    for name, (edge, cumulative, ranges) in _COUNTS.items():
        steps = files.draw_steps(rng, num_users, np.array(edge), np.array(cumulative))
        value_U = np.minimum(steps.astype(np.int64), edge[-1] - 1)
        columns[name] = value_U
        columns[f"{name}_range"] = files.to_ranges(value_U, np.array(edge[:-1]), ranges.split())
    no_last_six_U, no_fourth_U = (
        files.exact_mask(rng, num_users, files.scaled(count, OFFICIAL_USERS, num_users))
        for count in (714, 874)
    )
    for i, rows in enumerate(_ONEHOT):
        if isinstance(rows, int):
            # A small data set has fewer codes than the official one, at least two users each.
            share = files.zipf_shares(min(rows, num_users // 2), _ONEHOT_EXPONENT)
        else:
            share = np.array(rows, np.float64)
        code_U = files.by_score(rng, preferences.user_UD[:, i % num_dims], share)
        columns[f"onehot_feat{i}"] = code_U
        # Columns with nulls are written as floats.
        if i == 4 or i >= 12:
            columns[f"onehot_feat{i}"] = files.with_nulls(
                code_U.astype(np.float64), no_fourth_U if i == 4 else no_last_six_U
            )
    return pl.DataFrame(columns)


def make_videos(seed: int, preferences: tastes.Preferences) -> pl.DataFrame:
    """The rows of video_features_basic_pure.csv: 12 columns, one row per video.

    Tags follow the videos' taste. Authors and music are nearly one per video, as in the official
    file, so the creators of the preferences are not among the columns.
    """
    rng = files.random_stream(seed, "videos")
    num_videos = len(preferences.item_VD)

    def part(official: int) -> int:
        return files.scaled(official, OFFICIAL_VIDEOS, num_videos)

    author_V = files.covering_codes(rng, num_videos, part(6_510), exponent=0.5)
    author_ids = rng.choice(10**8, author_V.max() + 1, replace=False)
    # A video without music has the music id 0.
    silent_V = files.exact_mask(rng, num_videos, part(203))
    music_V = np.zeros(num_videos, np.int64)
    with_music = num_videos - int(silent_V.sum())
    num_music = min(part(7_202) - 1, with_music)
    music_ids = 1 + rng.choice(10**10, num_music, replace=False)
    music_code = files.covering_codes(rng, with_music, num_music, exponent=0.5)
    music_V[~silent_V] = music_ids[music_code]
    duration_V = files.draw_steps(rng, num_videos, _DURATION_EDGE_MS, _DURATION_SHARE)
    size_V = files.deal(rng, _SIZE_SHARE, num_videos)
    types = np.array([7506.0, 76, 1])
    music_types = np.array([6665.0, 657, 41, 14, 3])
    upload_V = files.deal(rng, np.array([*_UPLOAD_TYPES.values()], np.float64), num_videos)
    return pl.DataFrame(
        {
            "video_id": np.arange(num_videos),
            "author_id": author_ids[author_V],
            "video_type": files.take(
                ["NORMAL", "AD", "UNKNOWN"], files.deal(rng, types, num_videos)
            ),
            "upload_dt": files.take(
                ["2022-04-09", "2022-04-10", "2022-04-11"],
                files.draw_shares(rng, np.array([2832.0, 3424, 1327]), num_videos),
            ),
            "upload_type": files.take(list(_UPLOAD_TYPES), upload_V),
            "visible_status": np.zeros(num_videos),
            "video_duration": files.with_nulls(
                duration_V.round(), files.exact_mask(rng, num_videos, part(239))
            ),
            "server_width": _SIZES[size_V, 0].astype(np.float64),
            "server_height": _SIZES[size_V, 1].astype(np.float64),
            "music_id": music_V,
            "music_type": files.with_nulls(
                np.array([9.0, 4, 8, 7, 11])[files.draw_shares(rng, music_types, num_videos)],
                silent_V,
            ),
            "tag": _make_tags(rng, preferences, part(96)),
        }
    )


def _make_tags(
    rng: np.random.Generator, preferences: tastes.Preferences, num_null: int
) -> pl.Series:
    """Comma-joined tag ids: one for 3 of 4 videos, two for most others, rarely three or none."""
    num_videos = len(preferences.item_VD)
    # The dimensions of taste that the users' onehot_feat1 and onehot_feat7 follow.
    first_V = files.by_score(rng, preferences.item_VD[:, 1], _TAG_ROWS, noise=0.1) + 1
    second_V = files.by_score(rng, preferences.item_VD[:, 7], _TAG_ROWS, noise=0.1) + 1
    third_V = files.draw_shares(rng, _TAG_ROWS, num_videos) + 1
    count_V = 1 + files.draw_shares(rng, np.array([5696.0, 1759, 32]), num_videos)
    # A video does not carry a tag twice.
    second_V = np.where(second_V == first_V, second_V % len(_TAG_ROWS) + 1, second_V)
    clash_V = (third_V == first_V) | (third_V == second_V)
    count_V = np.where(clash_V, np.minimum(count_V, 2), count_V)
    frame = pl.DataFrame({"n": count_V, "a": first_V, "b": second_V, "c": third_V})
    tags = pl.concat_list(pl.col("a", "b", "c").cast(pl.String)).list.head(pl.col("n"))
    text = frame.select(tags.list.join(",")).to_series()
    return files.with_nulls(text, files.exact_mask(rng, num_videos, num_null))
