"""The folder: NumPy alone reads it, damage is named, nothing half-written remains."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dsmoe_jax.retrieval import choice
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import indexing, retriever
from tests.models import small
from tests.serving import shop, small_bundle

# A bundle of this format, which later releases must go on reading: `python -m
# tests.serving.test_bundle` writes another.
GOLDEN = pathlib.Path(__file__).parent / "golden_bundle"

# What a server without JAX does: it imports NumPy and reads files. It asks for users by row.
READER = """
import json, pathlib, sys
import numpy as np

root = pathlib.Path(sys.argv[1])
manifest = json.loads((root / "manifest.json").read_text())
array = {path.stem: np.load(path) for path in root.glob("*.npy")}
columns = {name: n for n, name in enumerate(manifest["columns"])}
form, spec = manifest["towers"]["user"], manifest["spec"]


def window(name, row, scenario):
    suffix = f"_{scenario}" if name == "scenario_history" else ""
    place = [columns[f"{name}_{end}{suffix}"] for end in ("start", "stop")]
    start, stop = array["user_rows"][row, place]
    length = next(s["max_len"] for s in spec["sequences"] if s["name"] == name)
    return array[f"sequence_{name}"][max(start, stop - length) : stop]


def pool(bag, row):
    ids = window(bag["sequence"], row, 0)[:, 0]
    weight = np.maximum(bag["recency"] ** np.arange(len(ids))[::-1], bag["floor"])
    norm = np.sqrt(max((weight**2).sum() + bag["extra"], 1))
    return weight @ array[bag["table"]][ids] / norm


def embed(slot, row, scenario, pooled):
    table = array.get(slot["table"])
    if slot["kind"] == "sparse":
        names = [f["name"] for f in manifest["raw_spec"]["user_sparse"]]
        return table[array["users_sparse"][row, names.index(slot["name"])] + slot["first_row"]]
    if slot["kind"] == "dense":
        return array["users_dense"][row, slot["column"]] * table[slot["first_row"]]
    if slot["kind"] == "pooled":
        return pooled[slot["name"]]
    if slot["kind"] == "bag":
        ids = array["users_bag_" + slot["name"]][row]
        ids = ids[ids > 0]
    else:
        ids = window(slot["name"], row, scenario)[:, slot["column"]]
    return table[ids + slot["first_row"]].mean(0) if len(ids) else np.zeros(table.shape[1])


def vector(row, scenario):
    parts, pooled = [], {}
    if form["linear"]:
        pooled = {bag["sequence"]: pool(bag, row) for bag in form["linear"]["bags"]}
        taste = np.append(array["linear_kind"][scenario] + sum(pooled.values()), 1)
        variance = taste @ array["linear_covariance"] @ taste
        parts += [array["linear_scale"][scenario] / np.sqrt(variance) * taste, [1]]
    if form["slots"]:
        x = np.concatenate([embed(slot, row, scenario, pooled) for slot in form["slots"]])
        hidden = x @ array["user_first"][scenario] + array["user_first_bias"][scenario]
        hidden = np.where(hidden > 0, hidden, array["user_slope"] * hidden)
        parts.append(hidden @ array["user_second"][scenario] + array["user_second_bias"][scenario])
    return np.concatenate(parts)


found = []
for row, scenario in array["test_queries"]:
    item_vectors = array["item_vectors"][scenario if manifest["item_uses_scenario"] else 0]
    score = item_vectors @ vector(row, scenario)
    start, stop = (array["user_rows"][row, columns[f"history_{e}"]] for e in ("start", "stop"))
    score[array["sequence_history"][start:stop, 0]] = -np.inf
    score[0] = -np.inf
    found.append(array["items_raw_id"][np.argsort(-score)[:5]])
assert not {"jax", "dsmoe_jax"} & {*sys.modules}
np.save(sys.argv[2], np.array(found))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return shop.prepare(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def plus(store):
    return shop.Untrained(store, small.SMALL_MATCHERS["dsmoe_plus"])


@pytest.fixture(scope="module")
def exported(plus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    plus.export(folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["dsmoe", "fism", "dsmoe_plus"])
def test_numpy_alone_reads_a_folded_bundle(store, name, tmp_path):
    shop.Untrained(store, small.SMALL_MATCHERS[name]).export(tmp_path / "bundle")
    command = [sys.executable, "-c", READER, str(tmp_path / "bundle"), str(tmp_path / "got.npy")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    found = retriever.Retriever.load(tmp_path / "bundle")
    users = store.users_raw_id[found.bundle.load("test_queries")[:, 0]].tolist()
    lists = found.recommend(sorted(set(users)), "all", 5)
    by_query = {
        key: items
        for *key, items in lists.group_by("user_id", "scenario").agg("item_id").iter_rows()
        for key in [tuple(key)]
    }
    for got, user, (_, s) in zip(
        np.load(tmp_path / "got.npy"), users, found.bundle.load("test_queries"), strict=True
    ):
        assert got.tolist() == by_query[user, found.scenarios[s]]


def test_a_flipped_bit_in_any_file_is_refused_by_name(folder):
    retriever.Retriever.load(folder)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for place in (len(data) // 3, len(data) - 1):
            flipped = bytearray(data)
            flipped[place] ^= 4
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=f"{path.name}: ") as caught:
                retriever.Retriever.load(folder)
            assert "\n" not in str(caught.value)
            path.write_bytes(data)
    retriever.Retriever.load(folder)


def test_a_missing_or_cut_file_and_another_format_are_refused(folder):
    (folder / "item_vectors.npy").rename(folder / "away")
    with pytest.raises(ValueError, match=r"item_vectors.npy: .* expected a file of .* got none"):
        bundle_lib.Bundle.open(folder, verify=False)
    (folder / "item_vectors.npy").write_bytes((folder / "away").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"item_vectors.npy: .* bytes, got"):
        bundle_lib.Bundle.open(folder, verify=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    for found, mend in ((3, "install the release"), (1, "export it again")):
        (folder / "manifest.json").write_text(json.dumps({**manifest, "format": found}))
        with pytest.raises(
            ValueError, match=f"expected a bundle of format 2, got format {found}; {mend}"
        ):
            bundle_lib.Bundle.open(folder)
    for text in ("", "[]", "{", '{"format": "2"}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json: the bundle is damaged"):
            bundle_lib.Bundle.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"expected a bundle with manifest.json, found none"):
        bundle_lib.Bundle.open(folder)
    (folder / "bundle.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found one of format 1, which cannot be served"):
        bundle_lib.Bundle.open(folder)


def test_a_file_outside_of_the_folder_is_no_file_of_it(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../log.csv"] = {"bytes": 1, "sha256": ""}
    manifest["digest"] = bundle_lib.digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="the bundle is damaged"):
        bundle_lib.Bundle.open(folder)


def test_an_older_bundle_is_replaced_and_other_files_are_not(plus, folder):
    (folder / "stale.npy").write_bytes(b"")
    plus.export(folder)
    assert not (folder / "stale.npy").exists()
    assert {path.name for path in folder.parent.iterdir()} == {"bundle"}
    notes = folder.parent / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a bundle to replace or nothing"):
        plus.export(notes)
    assert (notes / "a.txt").read_text() == "mine"


def test_what_took_a_bundles_place_is_not_lost(tmp_path, monkeypatch):
    folder = small_bundle.write_bundle(tmp_path / "bundle")
    found = retriever.Retriever.load(folder)
    found.remove_items([1000])
    newer = bundle_lib.Bundle.open(small_bundle.write_bundle(folder, seed=1))
    told = f"digest {found.bundle.digest[:12]}, got {newer.digest[:12]}: it was exported or changed"
    with pytest.raises(ValueError, match=told) as caught:
        found.save_changes()
    assert "\n" not in str(caught.value)
    assert bundle_lib.Bundle.open(folder).digest == newer.digest
    # So it is where it happens while an index is chosen.
    choose = choice.choose

    def slow(*arguments, **options):
        small_bundle.write_bundle(folder, seed=2)
        return choose(*arguments, **options)

    monkeypatch.setattr(choice, "choose", slow)
    with pytest.raises(ValueError, match="expected the bundle that was opened"):
        indexing.make_index(folder, min_recall=0.9, k=5)
    assert "indexes" not in bundle_lib.Bundle.open(folder).manifest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_nothing_half_written_remains(plus, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_lib, "digest", lambda manifest: object())
    with pytest.raises(TypeError):
        plus.export(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_golden_bundle_answers_as_it_did():
    expected = json.loads((GOLDEN / "lists.json").read_text())
    found = retriever.Retriever.load(GOLDEN / "bundle")
    for request, answers in expected:
        got = found.recommend(request, "all", 5)
        assert got["item_id"].to_list() == [item for items, _ in answers for item in items]
        scores = [score for _, scores in answers for score in scores]
        np.testing.assert_allclose(got["score"].to_numpy(), scores, rtol=1e-5, atol=1e-6)


def write_golden(scratch):
    """Writes the golden bundle and its lists; of an old format this is not possible any more."""
    untrained = shop.Untrained(shop.prepare(scratch), small.SMALL_MATCHERS["dsmoe_plus"])
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    untrained.export(GOLDEN / "bundle")
    found = retriever.Retriever.load(GOLDEN / "bundle")
    requests = [
        {"user_id": "u3"},
        {"user_id": "new", "history": ["i1", "i2"], "shown": ["i5"], "age": "30s"},
        {"user_id": "cold"},
    ]
    lists = []
    for request in requests:
        by_scenario = found.recommend(request, "all", 5).group_by("scenario", maintain_order=True)
        rows = by_scenario.agg("item_id", "score").iter_rows()
        lists.append([request, [[items, scores] for _, items, scores in rows]])
    (GOLDEN / "lists.json").write_text(json.dumps(lists, indent=1) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        write_golden(pathlib.Path(scratch))
