import gzip

import numpy as np
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import alimama
from dsmoe_jax.data.synthetic import files

MAY_6_S = 1_494_000_000
DAY_S = 86_400
SAMPLE_HEADER = "user,time_stamp,adgroup_id,pid,nonclk,clk"
AD_HEADER = "adgroup_id,cate_id,campaign_id,customer,brand,price"
PROFILE_HEADER = (
    "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
    "occupation,new_user_class_level "
)
BEHAVIOR_HEADER = "user,time_stamp,btag,cate,brand"
HEADERS = {
    "raw_sample.csv": SAMPLE_HEADER,
    "ad_feature.csv": AD_HEADER,
    "user_profile.csv": PROFILE_HEADER,
    "behavior_log.csv": BEHAVIOR_HEADER,
}


def at(day, second=0):
    """Unix seconds of a second of the day-th of May 2017 in Beijing."""
    return MAY_6_S + (day - 6) * DAY_S + second


def make_rows():
    """Two users in each city level, who click on days 6, 12 and 13; user ids are 10 x level + n."""
    samples, profiles = [], []
    for level in (1, 2, 3, 4):
        for n in (1, 2):
            user = 10 * level + n
            profiles.append(f"{user},{level},2,{n},3,,1,0,{level}")
            for day, ad in ((6, 100 + level), (12, 105), (13, 106)):
                samples.append(f"{user},{at(day, 600 * user)},{ad},430548_1007,0,1")
            samples.append(f"{user},{at(7)},108,430539_1007,1,0")
    ads = [f"{ad},{ad % 3},{ad + 1000},7,{ad + 500},{ad}.5" for ad in range(101, 110)]
    return {
        "raw_sample.csv": samples,
        "ad_feature.csv": ads,
        "user_profile.csv": profiles,
        "behavior_log.csv": [f"11,{at(5)},pv,0,601", f"21,{at(5)},pv,1,602"],
    }


def write(folder, rows, **extra):
    folder.mkdir(exist_ok=True)
    for name, header in HEADERS.items():
        lines = [header, *rows[name], *extra.get(name.removesuffix(".csv"), [])]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def prepare(tmp_path, rows=None, **extra):
    write(tmp_path / "raw", rows or make_rows(), **extra)
    alimama.AlimamaConfig(raw_dir=str(tmp_path / "raw")).prepare(str(tmp_path / "store"))
    return store_lib.Store.open(tmp_path / "store", verify=True)


def row_of(raw_id, raw):
    return int(np.flatnonzero(np.asarray(raw_id) == raw)[0])


def vocabulary(store, name):
    return store.load(f"vocabulary_{name}").tolist()


def raw_values(store, side, name):
    """{raw id: raw value} of a sparse feature; -1 is unknown."""
    spec = store.spec.user_sparse if side == "users" else store.spec.item_sparse
    column = [f.name for f in spec].index(name)
    raw_id = getattr(store, f"{side}_raw_id")
    codes = getattr(store, f"{side}_sparse")[:, column]
    return dict(zip(raw_id[1:].tolist(), np.array(vocabulary(store, name))[codes[1:]], strict=True))


def behaviors_before(store, user, day):
    """(category, brand) raw values of a user's window on a training day or query cut."""
    c = store.columns
    rows = store.train_NC if day == 6 else store.queries("test").rows_QC
    row = rows[rows[:, c["user"]] == row_of(store.users_raw_id, user)][0]
    ids = store.sequences["behavior"][0][row[c["behavior_start"]] : row[c["behavior_stop"]]]
    category, brand = vocabulary(store, "category"), vocabulary(store, "brand")
    return [(category[a], brand[b]) for a, b in ids.tolist()]


def expect_error(tmp_path, match, rows=None, **extra):
    with pytest.raises(ValueError, match=match) as caught:
        prepare(tmp_path, rows, **extra)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_scenarios_are_city_levels_in_the_documented_order(tmp_path):
    store = prepare(tmp_path)
    assert store.manifest["scenarios"] == ["A1", "A2", "A3", "A4"]
    c = store.columns
    raw = store.users_raw_id[store.train_NC[:, c["user"]]]
    found = dict(zip((raw // 10).tolist(), store.train_NC[:, c["scenario"]].tolist(), strict=True))
    assert found == {2: 0, 3: 1, 4: 2, 1: 3}


def test_generated_files_are_called_synthetic_by_every_loader(tmp_path):
    assert prepare(tmp_path).manifest["dataset"] == "Alimama"
    files.generate(tmp_path / "made", "Alimama", "", {}, lambda path: write(path, make_rows()))
    alimama.AlimamaConfig(raw_dir=str(tmp_path / "made")).prepare(str(tmp_path / "other"))
    assert store_lib.Store.open(tmp_path / "other").manifest["dataset"] == "Alimama (synthetic)"


def test_days_are_split_six_one_one_in_beijing(tmp_path):
    store = prepare(
        tmp_path,
        # The last second of the 11th and the first of the 12th in Beijing; both are the 11th UTC.
        raw_sample=[f"21,{at(12) - 1},107,430548_1007,0,1", f"22,{at(12)},107,430548_1007,0,1"]
        + [f"11,{at(day)},109,430548_1007,1,0" for day in (8, 9, 10)],
    )
    split = store.manifest["split"]
    assert split["train"]["days"] == [f"2017-05-{d:02}" for d in range(6, 12)]
    assert (split["validation"]["days"], split["test"]["days"]) == (["2017-05-12"], ["2017-05-13"])
    c, ad = store.columns, row_of(store.items_raw_id, 107)
    trained = store.train_NC[store.train_NC[:, c["item"]] == ad]
    assert store.users_raw_id[trained[:, c["user"]]].tolist() == [21]


def test_only_clicks_are_positives_and_the_pool_is_what_was_clicked(tmp_path):
    store = prepare(tmp_path)
    assert sum(part["examples"] for part in store.manifest["split"].values()) == 8 * 3
    # 108 was shown, 107 and 109 were not even shown.
    assert sorted(store.items_raw_id[1:].tolist()) == [101, 102, 103, 104, 105, 106]


def test_impressions_without_a_click_are_exposures_if_asked_for(tmp_path):
    shown = [(21, 105), (21, 105), (21, 108), (999, 105), (42, 101)]
    lines = [f"{user},{at(7)},{ad},430548_1007,1,0" for user, ad in shown]
    plain = prepare(tmp_path, raw_sample=lines)
    section = alimama.AlimamaConfig(raw_dir=str(tmp_path / "raw"), exposures=True)
    section.prepare(str(tmp_path / "shown"))
    store = store_lib.Store.open(tmp_path / "shown", verify=True)
    np.testing.assert_array_equal(store.train_NC[:, :-2], plain.train_NC)
    names = [sequence.name for sequence in store.spec.sequences]
    assert names == ["history", "scenario_history", "behavior", "exposures"]
    ids_EF, _ = store.sequences["exposures"]
    assert store.items_raw_id[ids_EF[:, 0]].tolist() == [105, 101]
    daily_RF = store.load("daily")
    exposed_RF = daily_RF[daily_RF[:, 4] > 0]
    assert exposed_RF[:, 1].tolist() == [0, 2]
    assert store.items_raw_id[exposed_RF[:, 2]].tolist() == [105, 101]


def test_users_without_a_profile_or_level_are_left_out(tmp_path):
    rows = make_rows()
    rows["user_profile.csv"].append("77,1,2,1,3,2,1,0,")
    store = prepare(
        tmp_path,
        rows,
        raw_sample=[
            f"77,{at(6)},109,430548_1007,0,1",
            f"999,{at(6)},109,430548_1007,0,1",
        ],
        behavior_log=[f"77,{at(5)},pv,0,601", f"999,{at(5)},pv,0,601"],
    )
    assert sorted(store.users_raw_id[1:].tolist()) == [11, 12, 21, 22, 31, 32, 41, 42]
    assert 109 not in store.items_raw_id
    assert len(store.sequences["behavior"][0]) == 2


def test_missing_brands_are_unknown_however_written(tmp_path):
    rows = make_rows()
    rows["ad_feature.csv"][:2] = ["101,2,1101,7,NULL,101.5", "102,0,1102,7,,102.5"]
    store = prepare(tmp_path, rows)
    brand = raw_values(store, "items", "brand")
    assert (brand[101], brand[102], brand[103]) == (-1, -1, 603)


def test_prices_are_standardised_after_log1p(tmp_path):
    store = prepare(tmp_path)
    assert [f.name for f in store.spec.item_dense] == ["price"]
    price = np.log1p(store.items_raw_id[1:] + 0.5)
    expected = (price - price.mean()) / price.std()
    np.testing.assert_allclose(store.items_dense[1:, 0], expected, atol=1e-5)


def test_profiles_with_and_without_nulls_become_features(tmp_path):
    rows = make_rows()
    rows["user_profile.csv"][0] = "11,96,2,1,3,2,1,0,1"
    store = prepare(tmp_path, rows)
    # Columns with one value are left out; the level is the scenario.
    names = [f.name for f in store.spec.user_sparse]
    assert names == ["user_id", "cms_segid", "final_gender_code", "pvalue_level"]
    pvalue = raw_values(store, "users", "pvalue_level")
    assert (pvalue[11], pvalue[12]) == (2, -1)
    assert raw_values(store, "users", "cms_segid")[11] == 96


def test_behaviors_share_the_vocabularies_of_the_ads(tmp_path):
    store = prepare(
        tmp_path,
        behavior_log=[
            # A brand no ad has, a category no ad has, a category of an ad outside the pool.
            f"11,{at(5, 10)},cart,2,99999",
            f"11,{at(5, 20)},buy,88,601",
            f"11,{at(5, 30)},fav,0,608",
        ],
    )
    assert behaviors_before(store, 11, 6) == [(0, 601), (2, -1), (0, 608)]
    sequence = next(s for s in store.spec.sequences if s.name == "behavior")
    assert sequence.fields == ("category", "brand")


def test_behaviors_end_strictly_before_the_example_and_the_query(tmp_path):
    click_s = at(6, 600 * 11)
    store = prepare(
        tmp_path,
        behavior_log=[
            f"11,{click_s - 1},pv,1,602",
            f"11,{click_s},pv,2,603",
            f"11,{at(13) - 1},pv,0,604",
            f"11,{at(13)},pv,1,605",
        ],
    )
    assert behaviors_before(store, 11, 6) == [(0, 601), (1, 602)]
    assert behaviors_before(store, 11, 13) == [(0, 601), (1, 602), (2, 603), (0, 604)]


def test_impossible_times_are_dropped(tmp_path):
    times = (-2_114_566_861, -1, 0, at(6) - 14 * DAY_S - 1, at(14), 2_088_422_400, 2**40)
    store = prepare(tmp_path, behavior_log=[f"11,{t},pv,0,601" for t in times])
    assert len(store.sequences["behavior"][0]) == 2
    first, last = at(6) - 14 * DAY_S, at(14) - 1
    store = prepare(tmp_path, behavior_log=[f"11,{t},pv,0,601" for t in (first, last)])
    assert store.sequences["behavior"][1].tolist()[:3] == [first, at(5), last]


def test_repeated_behaviors_count_once(tmp_path):
    line = f"11,{at(5, 10)},pv,1,602"
    store = prepare(tmp_path, behavior_log=[line, line, line, f"11,{at(5, 10)},pv,1,603"])
    assert behaviors_before(store, 11, 6) == [(0, 601), (1, 602), (1, 603)]


def test_repeated_clicks_count_once(tmp_path):
    line = f"21,{at(7)},107,430548_1007,0,1"
    store = prepare(tmp_path, raw_sample=[line, line])
    assert store.manifest["counts"]["train"]["A1"] == 3


def test_both_spellings_of_the_last_header_are_read(tmp_path):
    write(tmp_path / "raw", make_rows())
    path = tmp_path / "raw" / "user_profile.csv"
    path.write_text(path.read_text().replace("new_user_class_level \n", "new_user_class_level\n"))
    alimama.AlimamaConfig(raw_dir=str(tmp_path / "raw")).prepare(str(tmp_path / "store"))
    assert store_lib.Store.open(tmp_path / "store").manifest["counts"]["users"] == 8


def test_compressed_files_give_the_same_store(tmp_path):
    plain = prepare(tmp_path).data_hash
    for path in list((tmp_path / "raw").iterdir()):
        with gzip.open(f"{path}.gz", "wb") as file:
            file.write(path.read_bytes())
        path.unlink()
    section = alimama.AlimamaConfig(raw_dir=str(tmp_path / "raw"))
    section.prepare(str(tmp_path / "other"))
    assert store_lib.Store.open(tmp_path / "other").data_hash == plain


def test_fewer_levels_give_fewer_scenarios(tmp_path):
    write(tmp_path / "raw", make_rows())
    section = alimama.AlimamaConfig(raw_dir=str(tmp_path / "raw"), levels=(4, 1))
    section.prepare(str(tmp_path / "store"))
    store = store_lib.Store.open(tmp_path / "store")
    assert store.manifest["scenarios"] == ["A1", "A2"]
    assert sorted(store.users_raw_id[1:].tolist()) == [11, 12, 41, 42]


@pytest.mark.parametrize("levels", [(), (1, 1), (1, 5)])
def test_levels_that_make_no_sense_are_refused(levels, tmp_path):
    with pytest.raises(ValueError, match=r"data\.levels: expected"):
        alimama.AlimamaConfig(levels=levels).prepare(str(tmp_path / "store"))


@pytest.mark.parametrize("raw_dir", ["", "absent"])
def test_missing_files_are_named_with_their_source_and_the_twin(tmp_path, raw_dir):
    folder = str(tmp_path / raw_dir) if raw_dir else ""
    with pytest.raises(ValueError) as caught:
        alimama.AlimamaConfig(raw_dir=folder).prepare(str(tmp_path / "store"))
    message = str(caught.value)
    for part in (
        *HEADERS,
        "Tianchi data set 56",
        "Ali_Display_Ad_Click",
        "--config.data.raw_dir=",
        "--config configs/alimama.py:synthetic",
    ):
        assert part in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_only_the_missing_file_is_named(tmp_path):
    write(tmp_path / "raw", make_rows())
    (tmp_path / "raw" / "behavior_log.csv").unlink()
    with pytest.raises(ValueError, match=r"missing behavior_log\.csv \(or") as caught:
        alimama.AlimamaConfig(raw_dir=str(tmp_path / "raw")).prepare(str(tmp_path / "store"))
    assert "ad_feature.csv" not in str(caught.value)


BAD_ROWS = {
    "a click on an ad nobody describes": (
        {"raw_sample": [f"21,{at(7)},555,430548_1007,0,1"]},
        r"raw_sample\.csv: row 34, column 'adgroup_id': expected an id that is in ad_feature\.csv, "
        r"got 555; add it to ad_feature\.csv or remove the row",
    ),
    "clk and nonclk that agree": (
        {"raw_sample": [f"21,{at(7)},101,430548_1007,1,1"]},
        r"raw_sample\.csv: row 34, column 'nonclk': expected the opposite of clk, got 1",
    ),
    "clk beyond 1": (
        {"raw_sample": [f"21,{at(7)},101,430548_1007,0,2"]},
        r"row 34, column 'clk': expected an integer from 0 to 1, got 2",
    ),
    "an impression of another year": (
        {"raw_sample": ["21,1400000000,101,430548_1007,0,1"]},
        r"row 34, column 'time_stamp': expected an integer from 1494000000 to 1494691199",
    ),
    "a user that is no number": (
        {"raw_sample": [f"u21,{at(7)},101,430548_1007,0,1"]},
        r"row 34, column 'user': expected an integer >= 0, got 'u21'",
    ),
    "an ad twice": (
        {"ad_feature": ["101,2,1101,7,601,101.5"]},
        r"ad_feature\.csv: row 11, column 'adgroup_id': expected every id once, got 101 again",
    ),
    "an ad without a price": (
        {"ad_feature": ["111,2,1101,7,601,"]},
        r"row 11, column 'price': expected a finite number >= 0, got nothing",
    ),
    "a user twice": (
        {"user_profile": ["11,1,2,1,3,,1,0,1"]},
        r"user_profile\.csv: row 10, column 'userid': expected every id once, got 11 again",
    ),
    "a level beyond 4": (
        {"user_profile": ["51,1,2,1,3,,1,0,5"]},
        r"row 10, column 'new_user_class_level': expected a whole number from 1 to 4 or nothing",
    ),
    "a short behaviour": (
        {"behavior_log": [f"11,{at(5)},pv,0"]},
        r"behavior_log\.csv: row 4: expected 5 columns, got 4",
    ),
    "a behaviour without a category": (
        {"behavior_log": [f"11,{at(5)},pv,,601"]},
        r"behavior_log\.csv: row 4, column 'cate': expected an integer >= 0, got nothing",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_and_leave_nothing(case, tmp_path):
    extra, match = BAD_ROWS[case]
    expect_error(tmp_path, match, **extra)


def test_missing_column_is_named(tmp_path):
    write(tmp_path / "raw", make_rows())
    path = tmp_path / "raw" / "ad_feature.csv"
    path.write_text(path.read_text().replace("cate_id", "category"))
    with pytest.raises(ValueError, match=r"ad_feature\.csv: row 1, column 'cate_id': expected it"):
        alimama.AlimamaConfig(raw_dir=str(tmp_path / "raw")).prepare(str(tmp_path / "store"))


def test_scenario_without_clicks_is_refused(tmp_path):
    rows = make_rows()
    rows["raw_sample.csv"] = [line for line in rows["raw_sample.csv"] if not line.startswith("1")]
    expect_error(tmp_path, r"scenario 'A4': expected at least one training positive", rows)


def test_log_of_too_few_days_is_refused(tmp_path):
    rows = make_rows()
    rows["raw_sample.csv"] = [
        row for row in rows["raw_sample.csv"] if int(row.split(",")[1]) < at(7)
    ]
    expect_error(tmp_path, "fewer than the 1 days that the log has", rows)
