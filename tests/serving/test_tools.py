import datetime
import shutil

import numpy as np
import pytest

from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import tools
from tests.serving import tool_bundle

RESULTS = {
    "k": [3],
    "scenarios": {
        "home": {"recall@3": 0.25, "recall@3_se": 0.0125},
        "search": {"recall@3": 0.5, "recall@3_se": None},
        "cart": {"recall@3": None, "recall@3_se": None},
    },
    "macro": {"recall@3": 0.375, "recall@3_se": 0.01},
    "split": {
        "train": {"days": ["2023-11-15", "2023-11-16"], "time_zone": "Asia/Tokyo"},
        "test": {"days": ["2023-11-24"], "time_zone": "Asia/Tokyo"},
    },
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fism")
    return tool_bundle.write(folder, "fism", run={"results": RESULTS})


def test_verify_is_one_line(path):
    files = bundle_lib.Bundle.open(path).manifest["files"]
    line = tools.verify(path)
    assert line.startswith(f"{path}: ok, {len(files)} files, 0.0 MB, digest ")
    assert "\n" not in line


def test_verify_names_the_file_with_a_flipped_byte(path, tmp_path):
    copy = shutil.copytree(path, tmp_path / "copy")
    names = sorted(file.name for file in copy.iterdir())
    assert len(names) > 20
    for name in names:
        file = copy / name
        sound = file.read_bytes()
        place = len(sound) // 2
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(ValueError, match=r"the bundle is damaged|expected a bundle") as refusal:
            tools.verify(copy)
        assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)
        file.write_bytes(sound)
    assert tools.verify(copy).startswith(f"{copy}: ok")


def test_show_tells_what_a_bundle_is(path):
    text = "\n".join(tools.show(path))
    for line in (
        "method      FISM, fism",
        "data        tiny shop, ",
        "days        train 2023-11-15 to 2023-11-16; test 2023-11-24 to 2023-11-24 of Asia/Tokyo",
        "scenarios   home, search, cart",
        "items       30, vectors of 7 numbers for each scenario",
        "users       40 known",
        "towers      arrays, which do not expire",
        "index       exact",
        'lists       leave out what the user had a positive with ("seen") by default',
        "requests    user_id, history, shown",
        "filters     brand, tags",
        "recall@3    home 25.0 ± 1.2 %, search 50.0 %, macro 37.5 ± 1.0 %",
    ):
        assert line in text.splitlines() or any(row.startswith(line) for row in text.splitlines())
    assert f"users until {datetime.date(2023, 11, 24)}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_show_names_features_and_an_index_that_was_chosen(path, monkeypatch):
    def open_changed(root, *, verify):
        bundle = opened(root, verify=verify)
        bundle.manifest |= {
            "results": {},
            "indexes": [{"name": "HNSW32", "k": 100, "recall": 0.9934}, {"name": "exact"} | EXACT],
        }
        bundle.spec = bundle.raw_spec
        return bundle

    EXACT = {"k": 100, "recall": 1.0}
    opened = bundle_lib.Bundle.open
    monkeypatch.setattr(bundle_lib.Bundle, "open", open_changed)
    lines = tools.show(path)
    assert "index       HNSW32, recall@100 0.9934; exact" in lines
    assert "categories  user_id, country" in lines and "bags        interests" in lines
    assert "numbers     age, spent" in lines
    assert "recall      the run was not evaluated" in lines


@pytest.mark.parametrize(
    ("today", "words"),
    [("2026-12-01", "180 days left"), ("2027-06-01", "no longer promised to be readable")],
)
def test_show_tells_when_a_program_expires(today, words):
    towers = {"kind": "stablehlo", "expires": "2027-05-30"}
    told = tools._describe_towers({"towers": towers}, datetime.date.fromisoformat(today))
    assert told.startswith("a compiled program") and told.endswith(words)


def test_the_onnx_file_is_compared_with_the_exact_lists(path, tmp_path, monkeypatch):
    lines, are_equal = tools.write_onnx(path, tmp_path / "shop.onnx", tool_bundle.K)
    assert are_equal and (tmp_path / "shop.onnx").is_file()
    assert lines[1] == "inputs: scenario, history, shown, removed"
    assert lines[3:] == [f"  {n:<12} overlap@8 100.00 %  equal" for n in tool_bundle.SCENARIOS]

    def forget(raw_X, ids):
        return np.full(ids.shape, "", raw_X.dtype)

    monkeypatch.setattr(tools.onnx_feeds, "_decode", forget)
    assert not tools.write_onnx(path, tmp_path / "shop.onnx", tool_bundle.K)[1]


def test_pushing_tells_how_lists_compare(path, tmp_path):
    uri = str(tmp_path / "items.parquet")
    lines, are_equal = tools.push_items(path, "parquet", uri, "items", k=5, replace=False)
    assert are_equal and lines[0] == f"pushed 30 items to parquet, {uri}"
    assert lines[2:] == [f"  {n:<12} overlap@5 100.00 %  equal" for n in tool_bundle.SCENARIOS]
