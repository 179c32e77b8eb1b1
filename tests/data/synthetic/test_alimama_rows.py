import dataclasses
import hashlib

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.synthetic import alimama_rows

SAMPLES, ADS = "raw_sample.csv", "ad_feature.csv"
PROFILES, BEHAVIORS = "user_profile.csv", "behavior_log.csv"
SIZE = alimama_rows.SyntheticAlimamaConfig(
    num_users=12_000,
    num_items=9_000,
    num_impressions=280_000,
    num_behaviors=400_000,
    generator_seed=1,
)
TINY = dataclasses.replace(
    SIZE, num_users=800, num_items=500, num_impressions=8_000, num_behaviors=9_000
)
LEVEL = "new_user_class_level "
MAY_6_S = 1_494_000_000
DAY_S = 86_400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("alimama")
    SIZE.write(path)
    return path


@pytest.fixture(scope="module")
def samples(folder):
    return pl.read_csv(folder / SAMPLES)


@pytest.fixture(scope="module")
def ads(folder):
    return pl.read_csv(folder / ADS, infer_schema_length=None)


@pytest.fixture(scope="module")
def profiles(folder):
    return pl.read_csv(folder / PROFILES, infer_schema_length=None)


@pytest.fixture(scope="module")
def behaviors(folder):
    return pl.read_csv(folder / BEHAVIORS)


def header(path):
    with path.open() as file:
        return file.readline()


def test_files_have_the_official_names_and_columns(folder):
    assert header(folder / SAMPLES) == "user,time_stamp,adgroup_id,pid,nonclk,clk\n"
    assert header(folder / ADS) == "adgroup_id,cate_id,campaign_id,customer,brand,price\n"
    assert header(folder / BEHAVIORS) == "user,time_stamp,btag,cate,brand\n"
    # The official header ends in a space.
    assert header(folder / PROFILES) == (
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level \n"
    )
    assert len(list(folder.iterdir())) == 4


def test_sizes_are_the_ones_asked_for(samples, ads, profiles, behaviors):
    assert (samples.height, ads.height, behaviors.height) == (280_000, 9_000, 400_000)
    assert samples["user"].n_unique() == 12_000
    # Seven per cent of the users have no profile.
    assert profiles.height == 12_000 - round(79_961 / 1_141_729 * 12_000)
    assert samples["user"].is_in(profiles["userid"].implode()).mean() < 0.95


def test_impressions_have_the_official_rate_days_and_places(samples):
    assert samples["clk"].mean() == pytest.approx(1_366_056 / 26_557_961, abs=0.002)
    assert (samples["nonclk"] + samples["clk"] == 1).all()
    assert samples["time_stamp"].is_between(MAY_6_S, MAY_6_S + 8 * DAY_S - 1).all()
    assert ((samples["time_stamp"] - MAY_6_S) // DAY_S).n_unique() == 8
    assert set(samples["pid"].unique()) == {"430548_1007", "430539_1007"}
    assert samples.null_count().sum_horizontal().item() == 0


def test_ads_have_the_official_values_and_missing_brands(folder, samples, ads):
    assert samples["adgroup_id"].is_in(ads["adgroup_id"].implode()).all()
    assert ads["adgroup_id"].n_unique() == ads.height
    scale = ads.height / 846_811
    for name, official in (("campaign_id", 423_436), ("customer", 255_876)):
        assert ads[name].n_unique() == round(official * scale)
    brand = ads["brand"].replace("NULL", None)
    assert brand.null_count() / ads.height == pytest.approx(0.29, abs=0.001)
    assert brand.drop_nulls().n_unique() == round(99_814 * scale)
    # Both ways in which the official file says that there is none.
    literal, empty = (ads["brand"] == "NULL").sum(), ads["brand"].null_count()
    assert min(literal, empty) > 0.4 * (literal + empty)
    assert ads["price"].min() == 0.01 and ads["price"].max() == 99_999_999.0
    assert ",99999999.0\n" in (folder / ADS).read_text()


def test_profiles_have_the_official_values_and_nulls(profiles):
    values = {
        "cms_segid": range(97),
        "cms_group_id": range(13),
        "final_gender_code": (1, 2),
        "age_level": range(7),
        "pvalue_level": (1, 2, 3),
        "shopping_level": (1, 2, 3),
        "occupation": (0, 1),
        LEVEL: (1, 2, 3, 4),
    }
    nulls = {"pvalue_level": 0.5424, LEVEL: 0.3249}
    for name, expected in values.items():
        assert set(profiles[name].drop_nulls().unique()) == set(expected)
        share = profiles[name].null_count() / profiles.height
        assert share == pytest.approx(nulls.get(name, 0.0), abs=1e-4)
    assert profiles["userid"].n_unique() == profiles.height


def test_kept_clicks_have_the_published_shares_of_scenarios(samples, profiles):
    clicks = samples.filter(pl.col("clk") == 1)
    level = clicks.join(profiles, left_on="user", right_on="userid")[LEVEL].drop_nulls()
    share = dict(level.value_counts(normalize=True).iter_rows())
    for value, expected in ((2, 0.45), (3, 0.25), (4, 0.20), (1, 0.10)):
        assert share[value] == pytest.approx(expected, abs=0.02)


def test_behaviors_have_the_official_tags_duplicates_and_impossible_times(behaviors):
    share = dict(behaviors["btag"].value_counts(normalize=True).iter_rows())
    total = 638.6 + 15.9 + 9.3 + 8.4
    for tag, millions in (("pv", 638.6), ("cart", 15.9), ("fav", 9.3), ("buy", 8.4)):
        assert share[tag] == pytest.approx(millions / total, abs=0.002)
    assert 1 - behaviors.unique().height / behaviors.height == pytest.approx(0.0706, abs=0.002)
    inside = behaviors["time_stamp"].is_between(MAY_6_S - 14 * DAY_S, MAY_6_S + 8 * DAY_S - 1)
    # The official share of them, and every kind: before, at the epoch, too early, too late.
    assert (~inside).sum() == pytest.approx(26_278 / 723_268_134 * 400_000, abs=6)
    assert behaviors.filter(inside)["time_stamp"].min() < MAY_6_S - 13 * DAY_S


def test_behaviors_reach_beyond_the_advertised_categories_and_brands(ads, behaviors):
    known = behaviors["cate"].is_in(ads["cate_id"].implode())
    assert known.mean() == pytest.approx(0.95, abs=0.005)
    branded = ads["brand"].replace("NULL", None).drop_nulls().cast(pl.Int64)
    assert 0.5 < behaviors["brand"].is_in(branded.implode()).mean() < 0.8


def test_an_ad_of_a_recent_brand_is_clicked_more(samples, ads, behaviors):
    brand = ads.select("adgroup_id", pl.col("brand").replace("NULL", None).cast(pl.Int64))
    shown = samples.join(brand, on="adgroup_id").drop_nulls("brand").with_row_index("row")
    before = (
        shown.select("row", "user", "time_stamp", "brand")
        .join(behaviors.unique(), on="user", suffix="_of_behavior")
        .filter(pl.col("time_stamp_of_behavior") < pl.col("time_stamp"))
        .sort("time_stamp_of_behavior", descending=True)
        .group_by("row", maintain_order=True)
        .head(10)
        .group_by("row")
        .agg((pl.col("brand") == pl.col("brand_of_behavior")).any().alias("match"))
    )
    rate = dict(
        shown.join(before, on="row").group_by("match").agg(pl.col("clk").mean()).iter_rows()
    )
    assert rate[True] > 4 * rate[False]


def digests(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}


def small(**changes):
    values = {
        "num_users": 3_000,
        "num_items": 1_000,
        "num_impressions": 60_000,
        "num_behaviors": 60_000,
    }
    return alimama_rows.SyntheticAlimamaConfig(**(values | changes))


def test_seed_decides_every_byte(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        size = dataclasses.replace(TINY, generator_seed=seed)
        size.write(tmp_path / name)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_blocks_change_the_rows_order_only_between_blocks(tmp_path, monkeypatch):
    # Many small blocks still give all users, all behaviours and the exact numbers of rows.
    monkeypatch.setattr(alimama_rows, "_BLOCK_BEHAVIORS", 2_000)
    dataclasses.replace(TINY, generator_seed=0).write(tmp_path)
    samples, behaviors = pl.read_csv(tmp_path / SAMPLES), pl.read_csv(tmp_path / BEHAVIORS)
    assert (samples.height, behaviors.height) == (8_000, 9_000)
    assert samples["user"].n_unique() == 800
    in_first_block = set(samples["user"][:200])
    assert not in_first_block & set(samples["user"][-200:])


def test_the_official_loader_reads_the_generated_files(tmp_path):
    small().prepare(str(tmp_path / "store"))
    store = store_lib.Store.open(tmp_path / "store", verify=True)
    raw = tmp_path / "store.synthetic"
    assert store.manifest["dataset"] == "Alimama (synthetic)"
    assert (raw / "SYNTHETIC.md").is_file()
    profiles = pl.read_csv(raw / PROFILES, infer_schema_length=None).drop_nulls(LEVEL)
    clicks = pl.read_csv(raw / SAMPLES).filter(pl.col("clk") == 1)
    clicks = clicks.join(profiles, left_on="user", right_on="userid").unique()
    assert sum(part["examples"] for part in store.manifest["split"].values()) == clicks.height
    assert store.spec.num_items == clicks["adgroup_id"].n_unique() + 1
    assert len(store.users_raw_id) == clicks["user"].n_unique() + 1
    columns = store.columns
    windows = (
        store.train_NC[:, columns["behavior_stop"]] - store.train_NC[:, columns["behavior_start"]]
    )
    assert np.median(windows) > 3


def test_too_small_a_size_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"data\.num_impressions: expected at least 3000, got 10"):
        small(num_impressions=10).prepare(str(tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []
