"""Small inputs that fell once, or must keep working: each is read rightly or refused in words."""

import json
import pathlib

import numpy as np
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import custom

CASES = pathlib.Path(__file__).parents[1] / "cases"
# Days of the log of most cases: ten, of twelve positives.
FROM, TO = "2024-05-01", "2024-05-10"

READ = {
    "bags-blanks": {"tags": ["a", "b"]},
    "big-int-positive": {"positives": 80},
    "cr-only": {},
    "daily-append": {},
    "dollar-scenario": {"scenarios": ["$0_$10", "$10_$20"]},
    "empty-daily-file": {},
    "empty-parquet-part": {},
    "hive-partitions": {},
    "inch-mark": {"brand": ["b0", "b1", "b2", "b3"]},
    "iso-postgres": {},
    "item-empty-nonpositive": {},
    "no-scenario": {"scenarios": ["everywhere"]},
    "pandas-list-bags": {"feat": ["0", "1", "2", "3", "4"]},
    "parquet-list-bag": {"tags": ["a", "b", "c"]},
    "semicolon": {},
    "slash-column": {"genre_main": ["g0", "g1", "g2"]},
    "tiny-dense": {},
    "tsv": {},
    "zip": {},
}
REFUSED = {
    "gap-days": r"split 'validation' \(2020-11-21 to 2020-11-23\): expected at least one positive, "
    r"got none, in 3 calendar days, 0 of them with rows; .*data\.validation_days",
    "ms-as-s": r"row 2, column 'time': .*milliseconds: set data\.time_unit='ms'",
    "one-item": r"items: expected at least 2 candidates, got 1",
    "repeat-purchases": r"scenarios 'home', 'search': .*what a user had clicked before is no .*"
    r"set data\.repeats=True and eval\.remove_seen='none'",
    "s-as-ms": r"row 2, column 'time': .*this looks like seconds: set data\.time_unit='s'",
    "scenario-case": r"data\.scenarios=\('Home', 'Search'\), where column 'page' holds 'home', 's",
    "sentinel-dense": r"items\.csv: row 5, column 'price': .*1\.797.*name it in data\.null_values",
}


def prepare(name, tmp_path, **changes):
    case = json.loads((CASES / name / "case.json").read_text())["data_config"]
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in case.items()} | changes
    custom.CustomConfig(raw_dir=str(CASES / name), **fields).prepare(str(tmp_path / "store"))
    return store_lib.Store.open(tmp_path / "store", verify=True)


def test_every_case_is_here():
    assert {path.name for path in CASES.iterdir()} == {*READ, *REFUSED}


@pytest.mark.parametrize("name", READ)
def test_a_case_is_read_as_it_is(name, tmp_path):
    store, expected = prepare(name, tmp_path), READ[name]
    split = store.manifest["split"]
    assert sum(entry["examples"] for entry in split.values()) == expected.get("positives", 120)
    assert (split["train"]["days"][0], split["test"]["days"][-1]) == (FROM, TO)
    assert list(store.spec.scenarios) == expected.get("scenarios", ["home", "search"])
    for feature, values in expected.items():
        if feature not in ("positives", "scenarios"):
            assert store.load(f"vocabulary_{feature}").tolist() == ["", *values]
    assert np.isfinite(store.items_dense).all()


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        prepare(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_numbers_too_small_for_their_squares_are_scaled(tmp_path):
    found = prepare("tiny-dense", tmp_path).items_dense[1:, 0]
    value = np.arange(len(found))
    expected = (value - value.mean()) / value.std()
    np.testing.assert_allclose(np.sort(found), expected, rtol=1e-6)


def test_the_settings_that_messages_name_mend_them(tmp_path):
    days = {"validation_days": 100, "test_days": 100}
    found = prepare("gap-days", tmp_path / "gap", **days).manifest["split"]
    assert {k: (len(v["days"]), v["days_with_rows"]) for k, v in found.items()} == {
        "train": (131, 5),
        "validation": (100, 3),
        "test": (100, 4),
    }
    prepare("ms-as-s", tmp_path / "ms", time_unit="ms")
    prepare("s-as-ms", tmp_path / "s", time_unit="s", validation_days=365, test_days=365)
    prepare("scenario-case", tmp_path / "case", scenarios=("home", "search"))
    store = prepare("repeat-purchases", tmp_path / "repeats", repeats=True)
    assert store.repeats
    counts = store.manifest["counts"]
    for split in ("validation", "test"):
        # Every held-out positive is relevant: each is another pair of user and item.
        assert len(store.queries(split).relevant.items) == sum(
            counts[f"{split}_positives"].values()
        )
    store = prepare("sentinel-dense", tmp_path / "dense", null_values=("1.7976931348623157e308",))
    assert np.abs(store.items_dense).max() < 10
