"""Names of columns: any text may be one, and features of equal names get names of their own."""

import csv
import re

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import custom, own_files, own_log, own_rows

SECOND = 1_714_521_600
ROLES = ("user_id", "item_id", "time", "scenario")
# Those that the preparation itself uses, or once used.
TAKEN = [
    *("day", "__row__", "__time_s__", "__scenario__", "__needed__", "row", "user", "item", "time"),
    *("scenario", "time_s", "positives", "id", "value", "everywhere", "0", "@1", "a\nb", "é"),
]
# A header is text; a condition is cut at an operator.
TEXTS = st.text(st.characters(exclude_characters="\r\0\ufeff=<>!", codec="utf-8"), min_size=1)
PATTERN = re.compile(r"(?s)\*|\^.*\$")
NAME = st.sampled_from(TAKEN) | TEXTS.map(str.strip).filter(
    lambda name: name and not PATTERN.fullmatch(name)
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(names=st.lists(NAME, min_size=6, max_size=6, unique=True))
@example(names=["day", "__row__", "__time_s__", "__scenario__", "x", "y"])
@example(names=["x", "y", "day", "positive", "__needed__", "__row__"])
def test_a_column_of_any_name_has_any_role(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("log")
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [("u1", "i1", SECOND, "home", 7, "?"), ("u2", "i2", SECOND, "home", 8, "?")]
        csv.writer(file).writerows([names, *rows])
    fields = dict(zip(ROLES, names, strict=False))
    positive = f"{names[4]} == 7"
    section = custom.CustomConfig(**fields, separator=",", positive=positive, raw_dir=str(folder))
    section.validate()
    found = own_rows.read_logs(section, *own_files.find(section), {})
    assert found.positives.select("user", "item", "scenario", "time_s").rows() == [
        ("u1", "i1", "home", SECOND)
    ]


@pytest.mark.parametrize("name", ["\0row", "*", "^a.*$"])
def test_names_of_added_columns_and_patterns_are_refused(tmp_path, name):
    message = r"expected another name of a column than .* rename the column"
    for fields in ({"user_id": name}, {"positive": f"{name} == 1"}):
        with pytest.raises(ValueError, match=f"data: {message}"):
            custom.CustomConfig(**fields).validate()
    log = pl.DataFrame({"u": ["a"], "i": ["b"], "t": [SECOND], name: ["x"]})
    roles = own_log.Roles("u", "i", "t", name, None)
    with pytest.raises(ValueError, match=f"log: {message}"):
        own_log.infer(tmp_path, log, None, None, roles, custom.CustomConfig())
    items = pl.DataFrame({"i": ["b"], name: ["x"]})
    with pytest.raises(ValueError, match=f"items: {message}"):
        own_log.infer(tmp_path, log, None, items, roles, custom.CustomConfig())


FEATURE = st.sampled_from(["a", "a/b", "a_b", "item_a", "user_a", "user_id", "item_id", "a_b_2"])
FEATURES = st.lists(FEATURE, max_size=5, unique=True)


def new_names(users, items, **fields):
    section = custom.CustomConfig(user_sparse=tuple(users), item_bags=tuple(items), **fields)
    renamed = section._new_names()
    return [renamed.get(("user", name), name) for name in users] + [
        renamed.get(("item", name), name) for name in items
    ]


@settings(max_examples=100, deadline=None)
@given(users=FEATURES, items=FEATURES, key=FEATURE)
def test_features_have_names_of_their_own(users, items, key):
    users = [name for name in users if name != key]
    found = new_names(users, items, users_key=key)
    assert len({*found, "user_id", "item_id"}) == len(found) + 2
    assert key not in found[: len(users)]
    assert not any("/" in name for name in found)


@pytest.mark.parametrize(
    ("users", "items", "expected"),
    [
        (["a"], ["a", "b"], ["user_a", "item_a", "b"]),
        (["a"], ["a", "item_a"], ["user_a", "item_a_2", "item_a"]),
        (["a"], ["a", "user_a"], ["user_a_2", "item_a", "user_a"]),
        ([], ["a/b", "a_b"], ["a_b_2", "a_b"]),
        (["a_b"], ["a/b"], ["a_b", "a_b_2"]),
        (["a", "item_a"], ["a", "item_a"], ["user_a", "user_item_a", "item_a", "item_item_a"]),
    ],
)
def test_a_new_name_that_is_taken_is_numbered(users, items, expected):
    assert new_names(users, items) == expected


def test_renamed_features_are_prepared_and_messages_name_what_was_written(tmp_path):
    rows = [(f"u{i % 9}", f"i{i % 50}", SECOND + i * 4320, "home") for i in range(200)]
    items = [(f"i{i}", f"x{i % 2}", f"y{i % 3}", 1 + (i % 2) * 2**-52) for i in range(50)]
    for name, header, lines in (
        ("log", ("user", "item", "time", "page"), rows),
        ("items", ("item", "a/b", "a_b", "c\td"), items),
    ):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
    fields = dict(zip(ROLES, ("user", "item", "time", "page"), strict=True))
    section = custom.CustomConfig(
        **fields, raw_dir=str(tmp_path), items_file="items.csv", item_sparse=("a/b", "a_b")
    )
    section.prepare(str(tmp_path / "store"))
    store = store_lib.Store.open(tmp_path / "store")
    assert store.manifest["vocabularies"] == {"a_b_2": 2, "a_b": 3}
    section.item_dense = ("c\td",)
    with pytest.raises(ValueError, match=r"items\.csv: column 'c\\td': expected numbers with a"):
        section.prepare(str(tmp_path / "store"))
