import errno
import fcntl
import json
import os
import re
import resource
import signal

import numpy as np
import pytest

from dsmoe_jax import disk, features
from dsmoe_jax.data import manifest as manifest_lib
from dsmoe_jax.data import store as store_lib

SPEC = features.FeatureSpec(
    scenarios=("A", "B"),
    user_sparse=(features.SparseFeature("user_id", 3),),
    user_dense=(features.DenseFeature("age"),),
    user_bags=(),
    item_sparse=(features.SparseFeature("item_id", 4),),
    item_dense=(),
    item_bags=(features.BagFeature("tag", 5, 2),),
    sequences=(features.SequenceFeature("history", ("item_id",), 0),),
)
COLUMNS = ["user", "scenario", "item", "time_s", "history_start", "history_stop"]


def fill(writer: store_lib.StoreWriter, shift: int = 0) -> None:
    writer.array("users_sparse", np.arange(3, dtype=np.int32)[:, None])
    writer.array("users_dense", np.array([[0], [1.5], [-1.5]], np.float32))
    writer.array("users_raw_id", np.array([-1, 10, 20]))
    writer.array("items_sparse", np.arange(4, dtype=np.int32)[:, None])
    writer.array("items_dense", np.zeros((4, 0), np.float32))
    writer.array("items_bag_tag", np.array([[0, 0], [1, 4], [2, 0], [0, 0]], np.int32))
    writer.array("items_raw_id", np.array(["", "a", "bb", "c"]))
    writer.array("sequence_history", np.array([[1], [2]], np.int32))
    growing = writer.append_array("sequence_history_time", np.int32)
    growing.append(np.array([100], np.int32))
    growing.append(np.array([200], np.int32))
    train = writer.append_array("train", np.int64, 6)
    train.append(np.array([[1, 0, 3, 300 + shift, 0, 2]]))
    for split in store_lib.SPLITS:
        writer.array(f"{split}_queries", np.array([[2, 1, 0, 400, 2, 2]]))
        writer.array(f"{split}_relevant_indptr", np.array([0, 2]))
        writer.array(f"{split}_relevant", np.array([1, 3], np.int32))
        writer.array(f"{split}_seen_indptr", np.array([0, 0]))
        writer.array(f"{split}_seen", np.zeros(0, np.int32))
        writer.array(f"{split}_cold", np.array([True]))
    writer.manifest(
        dataset="tiny",
        spec=SPEC,
        columns={"examples": COLUMNS},
        counts={"users": 2},
        split={},
        settings={"test_days": 2, "tabs": (1, 4)},
        inputs={"a.csv": {"bytes": 3, "sha256": "00"}},
    )


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "nested" / "store"
    with store_lib.StoreWriter(path) as writer:
        fill(writer)
    return path


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_back(root):
    store = store_lib.Store.open(root, verify=True)
    assert store.spec == SPEC
    assert store.columns["history_stop"] == 5
    np.testing.assert_array_equal(store.users_sparse, [[0], [1], [2]])
    np.testing.assert_array_equal(store.users_dense, [[0], [1.5], [-1.5]])
    np.testing.assert_array_equal(store.items_bags["tag"], [[0, 0], [1, 4], [2, 0], [0, 0]])
    assert list(store.items_raw_id) == ["", "a", "bb", "c"]
    assert store.items_dense.shape == (4, 0)
    ids_EF, time_E = store.sequences["history"]
    np.testing.assert_array_equal(ids_EF, [[1], [2]])
    np.testing.assert_array_equal(time_E, [100, 200])
    np.testing.assert_array_equal(store.train_NC, [[1, 0, 3, 300, 0, 2]])
    queries = store.queries("test")
    np.testing.assert_array_equal(queries.rows_QC, [[2, 1, 0, 400, 2, 2]])
    np.testing.assert_array_equal(queries.relevant.items, [1, 3])
    assert queries.seen.items.shape == (0,)
    assert queries.cold_Q.dtype == bool


def test_arrays_are_mapped_and_cannot_be_written(root):
    store = store_lib.Store.open(root)
    assert isinstance(store.train_NC, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.train_NC[0, 0] = 7


def test_only_the_two_held_out_splits_have_queries(root):
    with pytest.raises(ValueError, match=r"expected one of .*'validation', 'test'.* got 'train'"):
        store_lib.Store.open(root).queries("train")


def test_equal_content_gives_equal_bytes(root, tmp_path):
    with store_lib.StoreWriter(tmp_path / "again") as writer:
        fill(writer)
    assert entries(root) == entries(tmp_path / "again")
    for name in entries(root):
        assert (root / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_data_hash_follows_the_content(root, tmp_path):
    with store_lib.StoreWriter(tmp_path / "other") as writer:
        fill(writer, shift=1)
    one, other = store_lib.Store.open(root), store_lib.Store.open(tmp_path / "other")
    assert len(one.data_hash) == 64
    assert one.data_hash != other.data_hash


def test_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), store_lib.StoreWriter(tmp_path / "store") as writer:
        fill(writer)
        (writer.partial / "scratch").mkdir()
        raise RuntimeError
    assert entries(tmp_path) == []


def test_failure_keeps_the_older_store(root):
    before = store_lib.Store.open(root).data_hash
    with pytest.raises(RuntimeError), store_lib.StoreWriter(root) as writer:
        fill(writer, shift=1)
        raise RuntimeError
    assert store_lib.Store.open(root, verify=True).data_hash == before
    assert entries(root.parent) == ["store"]


def test_success_replaces_the_older_store_and_keeps_it_by_its_content(root):
    before = store_lib.Store.open(root).data_hash
    for shift in (1, 1, 0):
        with store_lib.StoreWriter(root) as writer:
            fill(writer, shift=shift)
        assert (store_lib.Store.open(root, verify=True).data_hash == before) == (shift == 0)
    [other] = set(entries(root.parent)) - {"store", f"store-{before[:12]}"}
    assert store_lib.Store.open(root.parent / f"store-{before[:12]}", verify=True)
    assert store_lib.Store.open(root.parent / other, verify=True).data_hash != before


def test_a_damaged_store_is_replaced_and_not_kept(root):
    (root / "manifest.json").write_text("{")
    with store_lib.StoreWriter(root) as writer:
        fill(writer)
    assert entries(root.parent) == ["store"]


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    leftover = tmp_path / "store.partial" / "scratch"
    leftover.mkdir(parents=True)
    (leftover / "0").write_bytes(b"x")
    (leftover.parent / "old.npy").write_bytes(b"x")
    with store_lib.StoreWriter(tmp_path / "store") as writer:
        fill(writer)
    assert "old.npy" not in entries(tmp_path / "store")
    assert entries(tmp_path) == ["store"]


def test_two_writers_of_one_store_exclude_each_other(tmp_path):
    partial = tmp_path / "store.partial"
    partial.mkdir()
    other = os.open(partial, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process is preparing this store"):
        store_lib.StoreWriter(tmp_path / "store").__enter__()
    os.close(other)
    assert partial.exists()


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_no_store_is_never_overwritten(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got .*file"):
        store_lib.StoreWriter(tmp_path / name).__enter__()
    assert entries(tmp_path) == ["file", "folder"]
    assert entries(tmp_path / "folder") == ["thesis.txt"]


def test_a_writer_without_manifest_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="expected `manifest`"),
        store_lib.StoreWriter(tmp_path / "s"),
    ):
        pass
    assert entries(tmp_path) == []


def test_an_array_is_written_once(tmp_path):
    with (
        pytest.raises(ValueError, match="x: expected each array once"),
        store_lib.StoreWriter(tmp_path / "s") as writer,
    ):
        writer.array("x", np.zeros(1))
        writer.array("x", np.zeros(1))


@pytest.mark.parametrize("block", [np.zeros((2, 3), np.int32), np.zeros((2, 2), np.int64)])
def test_a_growing_array_refuses_another_shape_or_type(tmp_path, block):
    with (
        pytest.raises(ValueError, match=r"expected int32 rows of shape \(2,\)"),
        store_lib.StoreWriter(tmp_path / "s") as writer,
    ):
        writer.append_array("x", np.int32, 2).append(block)
    assert entries(tmp_path) == []


def test_no_store_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"expected a prepared store with manifest.json") as caught:
        store_lib.Store.open(tmp_path)
    assert "\n" not in str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def edit(key, value):
    def apply(path):
        tree = json.loads(path.read_text())
        tree[key] = value
        path.write_text(json.dumps(tree))

    return apply


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train.npy", truncate, r"train.npy: the store is damaged: expected 176 bytes, got 175"),
        ("train.npy", os.remove, r"train.npy: .*expected a file of 176 bytes, got none"),
        ("train.npy", flip, r"train.npy: .*expected sha256 [0-9a-f]{12}"),
        ("manifest.json", lambda p: p.write_text("{"), r"manifest.json: .*expected JSON"),
        ("manifest.json", lambda p: p.write_bytes(b"\xff"), r"manifest.json: .*expected JSON"),
        ("manifest.json", edit("counts", {"users": 3}), r"manifest.json: .*content of hash"),
        ("manifest.json", edit("files", {"train.npy": {}}), r"names, bytes and sha256 of files"),
        ("manifest.json", edit("format", 99), r"expected format 1, got format 99"),
        ("manifest.json", edit("data_hash", "00"), r"expected data hash 00"),
        ("manifest.json", lambda p: p.write_text('{"format": 1}'), r"expected the key 'spec'"),
    ],
)
def test_damage_is_refused_in_one_line(root, name, damage, message):
    damage(root / name)
    with pytest.raises(ValueError, match=message) as caught:
        store_lib.Store.open(root, verify=True)
    assert "\n" not in str(caught.value)
    assert "prepare again" in str(caught.value)


@pytest.mark.parametrize("name", ["spec", "columns", "settings", "inputs", "versions"])
def test_every_bit_of_a_manifest_counts(root, name):
    path = root / "manifest.json"
    text = path.read_text()
    start = text.index(f'"{name}"') + len(name) + 5
    for place in (start, start + 3, start + 6):
        content = bytearray(text.encode())
        content[place] ^= 1
        path.write_bytes(bytes(content))
        try:
            same = json.loads(bytes(content)) == json.loads(text)
        except ValueError:
            same = False
        if not same:
            with pytest.raises(ValueError, match=r"manifest.json: the store is damaged"):
                store_lib.Store.open(root)


def test_a_store_from_before_its_manifest_had_a_hash_is_opened(root):
    path = root / "manifest.json"
    tree = json.loads(path.read_text())
    del tree["manifest_hash"]
    path.write_text(json.dumps(tree))
    assert store_lib.Store.open(root, verify=True).spec == SPEC
    # A damaged key is then found where it is read.
    path.write_text(json.dumps(tree).replace('"num_ids"', '"num_idt"'))
    with pytest.raises(ValueError, match=r"manifest.json: the store is damaged"):
        store_lib.Store.open(root)


def test_no_room_for_an_array_is_said_before_it_is_written(tmp_path, monkeypatch):
    asked = []

    def no_room(descriptor, start, num_bytes):
        asked.append(num_bytes)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(disk.FullDiskError) as caught, store_lib.StoreWriter(tmp_path / "s") as w:
        w.array("x", np.zeros(1000))
    assert asked == [8000]
    assert re.fullmatch(
        r".*x\.npy: the disk is full.*: expected room for 8,000 bytes, got [\d,]+ free; make room "
        r"and run the same command again",
        str(caught.value),
    )
    assert entries(tmp_path) == []


def test_a_file_system_that_cannot_allocate_is_written_to(tmp_path, monkeypatch):
    def unsupported(descriptor, start, num_bytes):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with store_lib.StoreWriter(tmp_path / "store") as writer:
        fill(writer)
    assert store_lib.Store.open(tmp_path / "store", verify=True).spec == SPEC


def test_no_room_for_rows_is_one_line_and_nothing_remains(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with (
            pytest.raises(disk.FullDiskError) as caught,
            store_lib.StoreWriter(tmp_path / "s") as w,
        ):
            growing = w.append_array("rows", np.int64, 2)
            for _ in range(9):
                growing.append(np.zeros((500, 2), np.int64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "rows.npy: the disk is full" in str(caught.value)
    assert entries(tmp_path) == []


def test_opening_without_verification_checks_sizes(root):
    flip(root / "train.npy")
    store_lib.Store.open(root)
    truncate(root / "train.npy")
    with pytest.raises(ValueError, match="damaged"):
        store_lib.Store.open(root)


def test_the_manifest_records_versions_and_inputs(root):
    manifest = store_lib.Store.open(root).manifest
    assert set(manifest["versions"]) == {"python", "numpy", "polars", "dsmoe_jax"}
    assert manifest["inputs"]["a.csv"] == {"bytes": 3, "sha256": "00"}
    assert manifest["files"]["train.npy"]["bytes"] == (root / "train.npy").stat().st_size
    assert manifest_lib.exists(root)
