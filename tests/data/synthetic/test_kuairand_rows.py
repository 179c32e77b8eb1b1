import hashlib

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import kuairand
from dsmoe_jax.data.synthetic import kuairand_rows

LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
RANDOM_LOG = "log_random_4_22_to_5_08_pure.csv"
USERS, VIDEOS = "user_features_pure.csv", "video_features_basic_pure.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The official numbers of users and videos, a fifth of the official impressions."""
    path = tmp_path_factory.mktemp("official")
    size = small(num_users=27_285, num_items=7_583, num_impressions=290_000, generator_seed=1)
    size.write(path)
    return path


@pytest.fixture(scope="module")
def log(folder):
    return pl.concat([pl.read_csv(folder / name) for name in LOGS])


@pytest.fixture(scope="module")
def distinct(log):
    return log.unique(["user_id", "video_id", "time_ms", "tab"])


@pytest.fixture(scope="module")
def users(folder):
    return pl.read_csv(folder / USERS, infer_schema_length=None)


@pytest.fixture(scope="module")
def videos(folder):
    return pl.read_csv(folder / VIDEOS, infer_schema_length=None)


def header(path):
    return path.read_text().split("\n", 1)[0]


def packaged_header(name):
    return pl.read_csv(kuairand.SAMPLE_DIR / f"{name}.gz", n_rows=1).columns


def test_files_have_the_official_names_and_columns(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*LOGS, RANDOM_LOG, USERS, VIDEOS]
    )
    # The packaged rows are in the official layout.
    log_columns = packaged_header("log_standard_4_25_to_5_06_pure.csv")
    assert len(log_columns) == 19
    for name in (*LOGS, RANDOM_LOG):
        assert header(folder / name) == ",".join(log_columns)
    assert header(folder / USERS) == ",".join(packaged_header(USERS))
    assert header(folder / VIDEOS) == ",".join(packaged_header(VIDEOS))


def test_number_of_rows_is_the_one_asked_for_and_split_like_the_official_logs(folder, log):
    assert log.height == pytest.approx(290_000, rel=0.02)
    early = pl.read_csv(folder / LOGS[0]).height
    assert early / log.height == pytest.approx(1_141_112 / 1_436_609, abs=0.01)
    random = pl.read_csv(folder / RANDOM_LOG)
    assert random.height == round(1_186_059 * 290_000 / 1_436_609)
    assert random["is_rand"].unique().to_list() == [1]
    assert log["is_rand"].unique().to_list() == [0]


def test_days_are_the_official_ones(folder):
    early, late = (pl.read_csv(folder / name)["date"] for name in LOGS)
    assert (early.min(), early.max(), early.n_unique()) == (20220408, 20220421, 14)
    assert (late.min(), late.max(), late.n_unique()) == (20220422, 20220508, 17)


def test_few_rows_carry_the_time_of_the_neighbouring_day(log):
    local = pl.from_epoch("time_ms", time_unit="ms") + pl.duration(hours=8)
    day = local.dt.strftime("%Y%m%d").cast(pl.Int64)
    assert log.select((day != pl.col("date")).mean()).item() == pytest.approx(0.009, abs=0.002)
    assert not log.select((day > pl.col("date")).any()).item()


def test_exact_duplicates_are_as_frequent_as_published_and_in_tab_six(log):
    assert 1 - log.unique().height / log.height == pytest.approx(0.024, abs=0.003)
    repeated = log.filter(log.is_duplicated())["tab"].value_counts(normalize=True, sort=True)
    assert repeated["tab"][0] == 6 and repeated["proportion"][0] > 0.9


def test_clicks_per_tab_have_the_published_shares_and_rates(distinct):
    kept = distinct.filter(pl.col("tab").is_in([1, 4, 2, 0]))
    clicks = kept.filter(pl.col("is_click") == 1)
    share = dict(clicks["tab"].value_counts(normalize=True).iter_rows())
    rate = dict(kept.group_by("tab").agg(pl.col("is_click").mean()).iter_rows())
    for tab, expected_share, expected_rate in (
        (1, 0.866, 0.49),
        (4, 0.082, 0.60),
        (2, 0.034, 0.48),
        (0, 0.018, 0.09),
    ):
        assert share[tab] == pytest.approx(expected_share, abs=0.012)
        assert rate[tab] == pytest.approx(expected_rate, abs=0.02)
    assert distinct["tab"].min() == 0 and distinct["tab"].max() == 14


def test_some_users_click_in_several_tabs(folder):
    # Published for about nine rows a user, as the first file has here.
    log = pl.read_csv(folder / LOGS[0])
    clicks = log.filter((pl.col("is_click") == 1) & pl.col("tab").is_in([1, 4, 2, 0]))
    tabs = clicks.group_by("user_id").agg(pl.col("tab").n_unique())["tab"]
    assert (tabs > 1).mean() == pytest.approx(0.23, abs=0.04)


def test_clicks_and_long_views_imply_each_other_as_published(distinct):
    clicked = distinct.filter(pl.col("is_click") == 1)
    viewed = distinct.filter(pl.col("long_view") == 1)
    assert clicked["long_view"].mean() == pytest.approx(0.70, abs=0.01)
    assert viewed["is_click"].mean() == pytest.approx(0.996, abs=0.002)


def test_cells_stay_in_the_official_ranges(log):
    assert log.null_count().sum_horizontal().item() == 0
    flags = ["is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"]
    for name in (*flags, "is_profile_enter"):
        assert set(log[name].unique()) == {0, 1}
    assert set(log["hourmin"].unique()) == {hour * 100 for hour in range(24)}
    assert log["user_id"].is_between(0, 27_284).all() and log["video_id"].is_between(0, 7_582).all()
    assert (log["play_time_ms"] >= 0).all() and log["comment_stay_time"].max() <= 300_000
    assert (log["duration_ms"] == 0).mean() == pytest.approx(239 / 7_583, abs=0.03)


def test_nobody_is_shown_a_video_twice(distinct):
    assert distinct.select(pl.struct("user_id", "video_id").n_unique()).item() == distinct.height


def test_user_features_have_the_published_values_and_nulls(users):
    assert users.height == 27_285
    assert users["user_id"].to_list() == list(range(27_285))
    cardinality = [2, 7, 50, 1471, 15, 34, 3, 118, 454, 7, 5, 5, 2, 2, 2, 2, 2, 2]
    nulls = [0, 0, 0, 0, 874, *[0] * 7, *[714] * 6]
    for i in range(18):
        column = users[f"onehot_feat{i}"]
        assert column.null_count() == nulls[i]
        assert column.drop_nulls().n_unique() == cardinality[i]
        assert column.dtype == (pl.Float64 if nulls[i] else pl.Int64)
    assert users["user_active_degree"].n_unique() == 9
    assert users["is_lowactive_period"].unique().to_list() == [0]
    assert (users["is_live_streamer"] == -124).mean() == pytest.approx(0.77, abs=0.01)
    assert set(users["is_live_streamer"].unique()) == {-124, 1}


def test_range_columns_agree_with_their_numbers(users):
    fans = users.filter(pl.col("fans_user_num_range") == "[10,100)")["fans_user_num"]
    assert fans.min() >= 10 and fans.max() <= 99
    assert fans.len() / users.height == pytest.approx(10_467 / 27_285, abs=0.02)
    registered = users.filter(pl.col("register_days_range") == "366-730")["register_days"]
    assert registered.min() >= 366 and registered.max() <= 730
    assert (users["follow_user_num_range"] == "500+").mean() == pytest.approx(0.218, abs=0.02)


def test_video_features_have_the_published_values_and_nulls(videos):
    assert videos.height == 7_583
    assert videos["author_id"].n_unique() == 6_510
    assert videos["music_id"].n_unique() == 7_202
    assert videos["upload_type"].n_unique() == 14
    assert videos["upload_dt"].n_unique() == 3
    for name, nulls in (("video_duration", 239), ("music_type", 203), ("tag", 96)):
        assert videos[name].null_count() == nulls
    tags = videos["tag"].drop_nulls().str.split(",")
    assert tags.explode().n_unique() == 46
    assert set(tags.list.len().unique()) == {1, 2, 3}
    assert (tags.list.n_unique() == tags.list.len()).all()


def test_features_tell_something_about_clicks(distinct, users, videos):
    # A neighbouring taste shares codes, so clicks by (code, tag) are no product of their margins.
    joined = (
        distinct.filter(pl.col("is_click") == 1)
        .join(users.select("user_id", pl.col("onehot_feat1").alias("code")), on="user_id")
        .join(videos.select("video_id", pl.col("tag").str.split(",").list.first()), on="video_id")
    )
    table = joined.pivot("tag", index="code", values="video_id", aggregate_function="len")
    count = table.drop("code").fill_null(0).to_numpy().astype(float)
    expected = count.sum(1, keepdims=True) * count.sum(0, keepdims=True) / count.sum()
    chi2 = ((count - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    # Under independence chi2 is about the degrees of freedom.
    assert chi2 > 2 * (count.shape[0] - 1) * (count.shape[1] - 1)


def digests(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}


def small(**changes):
    values = {"num_users": 600, "num_items": 400, "num_impressions": 24_000} | changes
    return kuairand_rows.SyntheticKuaiRandConfig(**values)


def test_seed_decides_every_byte(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        size = small(num_impressions=12_000, generator_seed=seed)
        size.write(tmp_path / name)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_the_official_loader_reads_the_generated_files(tmp_path):
    section = small()
    section.prepare(str(tmp_path / "store"))
    store = store_lib.Store.open(tmp_path / "store", verify=True)
    assert store.manifest["dataset"] == "KuaiRand-Pure (synthetic)"
    assert (tmp_path / "store.synthetic" / "SYNTHETIC.md").is_file()
    clicks = pl.concat([pl.read_csv(tmp_path / "store.synthetic" / name) for name in LOGS]).filter(
        (pl.col("is_click") == 1) & pl.col("tab").is_in([1, 4, 2, 0])
    )
    clicks = clicks.unique(["user_id", "video_id", "time_ms", "tab"])
    assert sum(part["examples"] for part in store.manifest["split"].values()) == clicks.height
    assert store.manifest["split"]["test"]["days"] == ["2022-05-07", "2022-05-08"]
    assert store.manifest["settings"]["num_impressions"] == 24_000


def test_a_prepared_twin_is_reused_and_changes_with_its_size(tmp_path, capsys):
    small().prepare(str(tmp_path / "store"))
    first = store_lib.Store.open(tmp_path / "store").data_hash
    capsys.readouterr()
    small().prepare(str(tmp_path / "store"))
    printed = capsys.readouterr().out
    assert "reused" in printed and "generated in" not in printed
    small(generator_seed=1).prepare(str(tmp_path / "store"))
    assert store_lib.Store.open(tmp_path / "store").data_hash != first


def test_too_small_a_size_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"data\.num_items: expected at least 200, got 50"):
        small(num_items=50).prepare(str(tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []


def test_files_of_somebody_else_are_not_overwritten(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / USERS).write_text("user_id\n1\n")
    with pytest.raises(ValueError, match="nothing was overwritten"):
        small(raw_dir=str(tmp_path / "raw")).prepare(str(tmp_path / "store"))
    assert (tmp_path / "raw" / USERS).read_text() == "user_id\n1\n"
