import csv
import datetime
import functools
import gzip
import pathlib
import shutil

import numpy as np
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import kuairand

LOG = "log_standard_4_25_to_4_30_pure.csv"
TABS = (1, 4, 2, 0)


def prepare(raw_dir, path, **changes):
    kuairand.KuaiRandConfig(raw_dir=str(raw_dir), **changes).prepare(str(path))
    return store_lib.Store.open(path, verify=True)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    return prepare("", tmp_path_factory.mktemp("kuairand") / "store")


@functools.cache
def read_csv(path):
    with gzip.open(path, "rt") as stream:
        return list(csv.DictReader(stream))


def ragged(rows, q):
    return rows.items[rows.indptr[q] : rows.indptr[q + 1]]


def test_the_packaged_rows_have_the_published_counts(packaged):
    counts = packaged.manifest["counts"]
    assert (counts["users"], counts["items"]) == (27_285, 7_583)
    # Clicks per tab over the twelve days, after de-duplication.
    for name, clicks in {"K1": 74_443, "K2": 7_063, "K3": 2_743, "K4": 1_514}.items():
        parts = ("train", "validation_positives", "test_positives")
        assert sum(counts[part][name] for part in parts) == clicks
    assert packaged.manifest["scenarios"] == ["K1", "K2", "K3", "K4"]
    assert packaged.manifest["dataset"] == "KuaiRand-Pure"


def test_the_packaged_rows_are_split_by_day(packaged):
    split = packaged.manifest["split"]
    assert split["train"]["days"][::7] == ["2022-04-25", "2022-05-02"]
    assert split["validation"]["days"] == ["2022-05-03", "2022-05-04"]
    assert split["test"]["days"] == ["2022-05-05", "2022-05-06"]
    assert split["train"]["examples"] == len(packaged.train_NC) == 58_385


def test_the_packaged_rows_come_with_licence_and_source():
    folder = kuairand.SAMPLE_DIR
    assert "Attribution-ShareAlike 4.0" in (folder / "LICENSE.txt").read_text()
    source = (folder / "SOURCE.md").read_text()
    for words in ("10.1145/3511808.3557624", "kuairand.com", "What was changed"):
        assert words in source
    rows = {path.name: len(read_csv(path)) for path in folder.glob("*.csv.gz")}
    assert rows == {
        "log_standard_4_25_to_5_06_pure.csv.gz": 198_895,
        "user_features_pure.csv.gz": 27_285,
        "video_features_basic_pure.csv.gz": 7_583,
        "user_history_until_4_24_pure.csv.gz": 26_469,
    }
    for name, count in rows.items():
        assert f"| `{name}` | {count:,} |" in source


def test_features_of_the_packaged_rows(packaged):
    spec = packaged.spec
    sizes = {f.name: f.num_ids for f in (*spec.user_sparse, *spec.item_sparse)}
    assert sizes["user_id"] == 27_286 and sizes["item_id"] == 7_584
    # Distinct values as the data set's own description counts them, and id 0.
    for name, distinct in {
        "user_active_degree": 9,
        "is_live_streamer": 1,
        "onehot_feat3": 1_471,
        "onehot_feat8": 454,
        "onehot_feat17": 2,
        "author_id": 6_510,
        "upload_dt": 3,
        "upload_type": 14,
        "music_id": 7_202,
        "video_duration_bucket": 20,
    }.items():
        assert sizes[name] == distinct + 1, name
    assert "is_lowactive_period" not in sizes and "visible_status" not in sizes
    assert [bag.name for bag in spec.item_bags] == ["tag"]
    assert spec.item_bags[0].num_ids == 47
    tags_VP = packaged.items_bags["tag"]
    assert np.sum(~tags_VP.any(axis=1)) == 96 + 1
    dense_UF = packaged.users_dense[1:]
    np.testing.assert_allclose(dense_UF.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(dense_UF.std(axis=0), 1, atol=1e-4)


def test_one_user_and_one_video_as_in_the_files(packaged):
    user = read_csv(kuairand.SAMPLE_DIR / f"{kuairand.USERS_FILE}.gz")[1]
    names = [f.name for f in packaged.spec.user_sparse]
    row = packaged.users_sparse[2]
    assert packaged.users_raw_id[2] == int(user["user_id"])
    for name in ("user_active_degree", "fans_user_num_range", "onehot_feat3", "onehot_feat4"):
        value = packaged.load(f"vocabulary_{name}")[row[names.index(name)]]
        assert str(value) == user[name].removesuffix(".0")
    # -124 is the files' word for unknown.
    assert user["is_live_streamer"] == "-124" and row[names.index("is_live_streamer")] == 0
    moments = packaged.manifest["dense"]["fans_user_num"]
    column = [f.name for f in packaged.spec.user_dense].index("fans_user_num")
    expected = (np.log1p(float(user["fans_user_num"])) - moments["mean"]) / moments["std"]
    np.testing.assert_allclose(packaged.users_dense[2, column], expected, rtol=1e-6)
    video = next(
        v for v in read_csv(kuairand.SAMPLE_DIR / f"{kuairand.ITEMS_FILE}.gz") if "," in v["tag"]
    )
    item = int(np.flatnonzero(packaged.items_raw_id == int(video["video_id"]))[0])
    tags = packaged.load("vocabulary_tag")[packaged.items_bags["tag"][item]]
    assert [str(t) for t in tags if t >= 0] == video["tag"].split(",")


def some_users(row):
    return int(row["user_id"]) % 60 == 7


def write_some_users(folder):
    """The packaged files with the log and history of one user in sixty."""
    folder.mkdir()
    for path in kuairand.SAMPLE_DIR.glob("*.csv.gz"):
        rows = read_csv(path)
        if "features" not in path.name:
            rows = [row for row in rows if some_users(row)]
        with gzip.open(folder / path.name, "wt", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def test_real_rows_give_what_the_protocol_says_row_by_row(tmp_path):
    write_some_users(tmp_path / "raw")
    store = prepare(tmp_path / "raw", tmp_path / "store")
    log = [
        row
        for row in read_csv(kuairand.SAMPLE_DIR / "log_standard_4_25_to_5_06_pure.csv.gz")
        if some_users(row)
    ]
    clicks = {}
    for row in log:
        if row["is_click"] == "1" and int(row["tab"]) in TABS:
            user, video, tab = int(row["user_id"]), int(row["video_id"]), int(row["tab"])
            scenario = TABS.index(tab)
            clicks[user, video, row["time_ms"], tab] = (
                user,
                int(row["date"]),
                int(row["time_ms"]) // 1000,
                video,
                scenario,
            )
    clicks = sorted(clicks.values())
    earlier = {
        int(row["user_id"]): [int(video) for video in row["long_watch_seq"].split()]
        for row in read_csv(kuairand.SAMPLE_DIR / f"{kuairand.HISTORY_FILE}.gz")
        if some_users(row)
    }

    of_user = {user: [c for c in clicks if c[0] == user] for user in {c[0] for c in clicks}}

    def history(user, date, time_s, scenario=None):
        found = list(earlier.get(user, ())) if scenario is None else []
        for _, day, second, video, s in of_user[user]:
            if scenario in (None, s):
                if day > date or second >= time_s:
                    break
                found.append(video)
        return found

    def stored(row):
        ids = [store.sequences[name][0][:, 0] for name in ("history", "scenario_history")]
        names = [("history", ids[0]), *((f"scenario_history_{s}", ids[1]) for s in range(4))]
        result = []
        for name, items in names:
            base, _, s = name.rpartition("_")
            first, last = (
                (f"{base}_start_{s}", f"{base}_stop_{s}")
                if s.isdigit()
                else (f"{name}_start", f"{name}_stop")
            )
            window = items[row[store.columns[first]] : row[store.columns[last]]]
            result.append(store.items_raw_id[window].tolist())
        return result

    def cut(user, date, time_s):
        return [history(user, date, time_s, s) for s in (None, 0, 1, 2, 3)]

    train = [c for c in clicks if c[1] <= 20220502]
    assert len(train) > 800
    for row, (user, date, time_s, video, scenario) in zip(store.train_NC, train, strict=True):
        assert store.users_raw_id[row[0]] == user and store.items_raw_id[row[2]] == video
        assert (row[1], row[3]) == (scenario, time_s)
        assert stored(row) == cut(user, date, time_s)

    for split, first, last in (("validation", 20220503, 20220504), ("test", 20220505, 20220506)):
        table, expected = store.queries(split), []
        for user, scenario in sorted({(c[0], c[4]) for c in clicks}):
            seen = {c[3] for c in of_user[user] if c[1] < first}
            held_out = {c[3] for c in of_user[user] if c[4] == scenario and first <= c[1] <= last}
            cold = all(c[1] > 20220502 for c in of_user[user])
            if held_out - seen:
                expected.append((user, scenario, sorted(held_out - seen), sorted(seen), cold))
        found = [
            (
                int(store.users_raw_id[row[0]]),
                int(row[1]),
                store.items_raw_id[ragged(table.relevant, q)].tolist(),
                store.items_raw_id[ragged(table.seen, q)].tolist(),
                bool(table.cold_Q[q]),
            )
            for q, row in enumerate(table.rows_QC)
        ]
        assert found == expected
        assert len(found) > 100
        midnight = datetime.datetime.strptime(f"{first}+0800", "%Y%m%d%z").timestamp()
        assert set(table.rows_QC[:, store.columns["time_s"]]) == {int(midnight)}
        for row, (user, *_) in zip(table.rows_QC, expected, strict=True):
            assert stored(row) == cut(user, first - 1, 2**40)


USERS = """user_id,user_active_degree,is_live_streamer,is_video_author,follow_user_num,\
follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,\
register_days,register_days_range,""" + ",".join(f"onehot_feat{i}" for i in range(18))
ITEMS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)
COLUMNS = "user_id,video_id,date,hourmin,time_ms,is_click,tab"
START_MS = 1_650_816_000_000  # 2022-04-25 00:00 in Beijing


def click(user, video, day, tab, is_click=1, repeat=0):
    time_ms = START_MS + day * 86_400_000 + (user + 10 * video) * 1000 + repeat
    return f"{user},{video},{20220425 + day},0,{time_ms},{is_click},{tab}"


def make_files():
    """Four users, six videos, six days, two tabs; every split has positives in both."""
    users = [
        f'{u},full_active,-124,{u % 2},{u},"[0,1)",{2 * u},x,{u},y,{9 * u},z'
        + "".join(f",{(u + i) % 2}.0" for i in range(18))
        for u in range(4)
    ]
    items = [
        f"{v},{v % 3},NORMAL,2022-04-1{v},Web,0.0,{1000 * v + 1}.0,720.0,1280.0,{v},9.0,"
        + ("" if v == 0 else f'"{v},7"')
        for v in range(6)
    ]
    # A user clicks a video once: on day d the video (user + d) % 6.
    log = [click(u, (u + d) % 6, d, (1, 4)[u % 2]) for d in range(6) for u in range(4)]
    log += [log[3], click(2, 0, 2, 6), click(3, 1, 1, 4, is_click=0)]
    return {
        kuairand.USERS_FILE: [USERS, *users],
        kuairand.ITEMS_FILE: [ITEMS, *items],
        LOG: [COLUMNS, *log],
        kuairand.HISTORY_FILE: ["user_id,long_watch_seq", "0,5 4 5", "2,"],
    }


def write_files(folder, files):
    folder.mkdir()
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


CHANGES = {"tabs": (1, 4), "validation_days": 1, "test_days": 1}


def history_of(store, row):
    start, stop = (row[store.columns[f"history_{bound}"]] for bound in ("start", "stop"))
    return store.items_raw_id[store.sequences["history"][0][start:stop, 0]].tolist()


def test_official_files_are_read_plain_or_compressed(tmp_path):
    raw = write_files(tmp_path / "raw", make_files())
    store = prepare(raw, tmp_path / "store", **CHANGES)
    # Four days of training, two users in each tab; repetitions, other tabs and non-clicks are out.
    assert store.manifest["counts"]["train"] == {"K1": 8, "K2": 8}
    assert history_of(store, store.train_NC[1]) == [5, 4, 5, 0]
    np.testing.assert_array_equal(store.items_bags["tag"][:3], [[0, 0], [0, 0], [1, 6]])
    for path in raw.iterdir():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = prepare(raw, tmp_path / "packed", **CHANGES)
    assert packed.data_hash == store.data_hash


def test_rows_that_are_no_positives_are_exposures_if_asked_for(tmp_path):
    files = make_files()
    # The click of user 3 on the first day, again without one.
    files[LOG].append(files[LOG][4].replace(",1,4", ",0,4"))
    files[kuairand.HISTORY_FILE] = [
        "user_id,watch_seq,long_watch_seq", "0,3 5 4 3 2 5,5 4 5", "2,,", "1,2,"
    ]  # fmt: skip
    raw = write_files(tmp_path / "raw", files)
    plain = prepare(raw, tmp_path / "plain", **CHANGES)
    store = prepare(raw, tmp_path / "store", exposures=True, **CHANGES)
    np.testing.assert_array_equal(store.train_NC[:, :-2], plain.train_NC)
    # Watched and no long view; a click in another tab; a row without a click.
    ids_EF, time_E = store.sequences["exposures"]
    assert store.items_raw_id[ids_EF[:, 0]].tolist() == [3, 3, 2, 2, 0, 1]
    start_s = START_MS // 1000
    later = [start_s + 2 * 86_400 + 2, start_s + 86_400 + 13]
    assert time_E.tolist() == [0, 0, 0, 0, *later]
    # Only tab 4 is a scenario.
    daily_RF = store.load("daily")
    [exposed] = daily_RF[daily_RF[:, 4] > 0][:, 1:].tolist()
    assert exposed == [1, 2, 0, 1]
    size_N = store.train_NC[:, -1] - store.train_NC[:, -2]
    assert size_N.tolist() == [3] * 4 + [1] * 4 + [0, 0, 1, 1] + [0, 1, 1, 1]


def test_exposures_of_the_packaged_rows(packaged, tmp_path):
    store = prepare("", tmp_path / "store", exposures=True)
    np.testing.assert_array_equal(store.train_NC[:, :-2], packaged.train_NC)
    users = set(packaged.users_raw_id[packaged.first_rows()[0]].tolist())
    clicked, shown = set(), set()
    for row in read_csv(kuairand.SAMPLE_DIR / "log_standard_4_25_to_5_06_pure.csv.gz"):
        tab = int(row["tab"])
        where = TABS.index(tab) if tab in TABS else None
        # Of one second and scenario one row counts.
        event = row["user_id"], row["video_id"], int(row["time_ms"]) // 1000, where
        if int(row["user_id"]) in users:
            (clicked if row["is_click"] == "1" and where is not None else shown).add(event)
    watched = 0
    for row in read_csv(kuairand.SAMPLE_DIR / f"{kuairand.HISTORY_FILE}.gz"):
        long = set(row["long_watch_seq"].split())
        if int(row["user_id"]) in users:
            watched += sum(video not in long for video in row["watch_seq"].split())
    assert store.manifest["counts"]["exposures"] == len(shown - clicked) + watched
    assert 0 < np.sum(store.sequences["exposures"][1] == 0) == watched


def test_a_repetition_on_another_date_counts_once_on_the_first(tmp_path):
    files = make_files()
    expected = prepare(write_files(tmp_path / "raw", files), tmp_path / "store", **CHANGES)
    # The click of user 3 on the first day, again with the next day's date.
    files[LOG].insert(1, files[LOG][4].replace("20220425", "20220426"))
    store = prepare(write_files(tmp_path / "twice", files), tmp_path / "other", **CHANGES)
    assert store.data_hash == expected.data_hash


def test_any_subset_of_the_logs_is_taken(tmp_path):
    files = make_files()
    expected = prepare(write_files(tmp_path / "raw", files), tmp_path / "store", **CHANGES)
    header, *log = files.pop(LOG)
    for i, part in enumerate((log[:10], log[10:])):
        files[f"log_standard_part{i}_pure.csv"] = [header, *part]
    files["log_random_4_22_to_5_08_pure.csv"] = ["not read"]
    store = prepare(write_files(tmp_path / "split", files), tmp_path / "other", **CHANGES)
    assert store.data_hash == expected.data_hash


@pytest.mark.parametrize("absent", [True, False])
def test_the_history_file_is_left_out_where_logs_reach_back(tmp_path, capsys, absent):
    files = make_files()
    if absent:
        del files[kuairand.HISTORY_FILE]
    else:
        files["log_standard_4_24_pure.csv"] = [COLUMNS, click(0, 0, 0, 6).replace("425,", "424,")]
    store = prepare(write_files(tmp_path / "raw", files), tmp_path / "store", **CHANGES)
    assert history_of(store, store.train_NC[1]) == [0]
    said = "user_history_until_4_24_pure.csv is left out: the logs begin on 2022-04-24"
    assert (said in capsys.readouterr().out) == (not absent)


def replaced(name, row, text):
    def change(files):
        files[name][row - 1] = text(files[name][row - 1]) if callable(text) else text

    return change


def cell(name, row, column, value):
    def edit(line):
        (cells,) = csv.reader([line])
        (names,) = csv.reader([make_files()[name][0]])
        cells[names.index(column)] = value
        return ",".join(f'"{c}"' if "," in c else c for c in cells)

    return replaced(name, row, edit)


def without(name):
    return lambda files: files.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(LOG), r"missing log_standard_\*_pure\.csv\[\.gz\]; they are published at"),
        (without(kuairand.USERS_FILE), r"missing user_features_pure\.csv\[\.gz\]"),
        (replaced(LOG, 1, COLUMNS.replace("tab", "tub")), "row 1, column 'tab': expected it in"),
        (cell(LOG, 5, "user_id", "x7"), "pure.csv: row 5, column 'user_id': .*, got 'x7'"),
        (cell(LOG, 5, "user_id", "-3"), "row 5, column 'user_id': .*>= 0, got -3"),
        (cell(LOG, 5, "user_id", "4"), "row 5, .*'user_id': expected an id that is in user_fea"),
        (cell(LOG, 5, "video_id", "6"), "row 5, .*'video_id': expected an id that is in video_f"),
        (cell(LOG, 5, "is_click", "2"), "row 5, column 'is_click': .* from 0 to 1, got 2"),
        (cell(LOG, 5, "tab", "15"), "row 5, column 'tab': .* from 0 to 14, got 15"),
        (cell(LOG, 5, "date", "20220431"), "row 5, column 'date': expected a date.*20220431"),
        (cell(LOG, 5, "time_ms", "0"), "row 5, column 'time_ms': .*, got 0"),
        (cell(LOG, 5, "time_ms", ""), "row 5, column 'time_ms': .*, got nothing"),
        (replaced(LOG, 5, lambda s: s.rsplit(",", 1)[0]), "row 5: expected 7 columns, got 6"),
        (replaced(LOG, 5, lambda s: s + ",1"), "row 5: expected 7 columns, got 8"),
        (cell(kuairand.USERS_FILE, 4, "user_id", "1"), "row 4, column 'user_id': .*1 again"),
        (cell(kuairand.USERS_FILE, 3, "register_days", "-1"), "row 3, column 'register_days'"),
        (cell(kuairand.USERS_FILE, 3, "onehot_feat4", "0.5"), "row 3, column 'onehot_feat4'"),
        (cell(kuairand.ITEMS_FILE, 3, "video_id", "0"), "row 3, column 'video_id': .*0 again"),
        (cell(kuairand.ITEMS_FILE, 3, "tag", "7,x"), "row 3, column 'tag': expected integers"),
        (cell(kuairand.HISTORY_FILE, 2, "user_id", "9"), "row 2, column 'user_id': expected an id"),
        (cell(kuairand.HISTORY_FILE, 2, "long_watch_seq", "5 6"), "row 2, .*'long_watch_seq'.* 6"),
        (cell(kuairand.HISTORY_FILE, 3, "user_id", "0"), "row 3, column 'user_id': .* 0 again"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(tmp_path, change, message):
    files = make_files()
    change(files)
    raw = write_files(tmp_path / "raw", files)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(raw, tmp_path / "store", **CHANGES)
    assert "\n" not in str(caught.value)
    assert str(raw) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_truncated_archive_is_refused(tmp_path):
    raw = write_files(tmp_path / "raw", make_files())
    packed = gzip.compress((raw / LOG).read_bytes())
    (raw / LOG).unlink()
    (raw / f"{LOG}.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"pure\.csv\.gz: expected a whole gzip file"):
        prepare(raw, tmp_path / "store", **CHANGES)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tabs": (1, 5)}, "scenario 'K2': expected at least one training positive"),
        ({"tabs": (1, 1)}, "data.tabs: expected distinct tabs"),
        ({"tabs": (1, 15)}, "data.tabs: expected tabs from 0 to 14"),
        ({"tabs": ()}, "data.tabs: expected distinct tabs"),
        ({"test_days": 5}, "data.validation_days, data.test_days: .* 6 days"),
    ],
)
def test_settings_that_leave_nothing_are_refused(tmp_path, changes, message):
    raw = write_files(tmp_path / "raw", make_files())
    with pytest.raises(ValueError, match=message):
        prepare(raw, tmp_path / "store", **{**CHANGES, **changes})
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_missing_folder_is_named():
    with pytest.raises(ValueError, match=r"data\.raw_dir: expected a folder .*, got /nowhere"):
        kuairand.find_files(pathlib.Path("/nowhere"))


def test_the_packaged_rows_repeat_byte_for_byte_and_are_reused(packaged, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(kuairand.SAMPLE_DIR, tmp_path / "raw")
    prepare(tmp_path / "raw", again)
    names = sorted(path.name for path in again.iterdir())
    assert names == sorted(path.name for path in packaged.root.iterdir())
    for name in names:
        assert (again / name).read_bytes() == (packaged.root / name).read_bytes(), name
    capsys.readouterr()
    prepare("", again)
    assert "reused, inputs and settings are unchanged" in capsys.readouterr().out


def test_the_archive_is_asked_for_and_not_replaced_by_the_packaged_rows(tmp_path):
    with pytest.raises(
        ValueError, match=r"data.raw_dir: expected the folder .* got none"
    ) as caught:
        kuairand.KuaiRandArchiveConfig().prepare(str(tmp_path / "store"))
    assert "configs/kuairand.py:sample" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
