"""The prepared store: memory-mapped `.npy` matrices and the JSON manifest that describes them.

Owns the layout on disk, reading and atomic writing. Does not own how raw rows become arrays
(`data/prepare/`) nor how arrays become batches (`data/pipeline.py`).

    manifest.json                      what is in here; written last
    users_sparse  int32 [U, F]         users_dense  float32 [U, F]   users_bag_<name>  int32 [U, P]
    items_sparse  int32 [V, F]         items_dense  float32 [V, F]   items_bag_<name>  int32 [V, P]
    users_raw_id, items_raw_id         the id in the raw files, by row: int64, or unicode
    vocabulary_<feature>               the raw value of each id of a sparse feature; row 0 unknown
    sequence_<name>  int32 [E, F]      sequence_<name>_time  int32 [E], unix seconds, 0 unknown
    train  int64 [N, C]                training examples, C columns named by `Store.columns`
    validation_queries, test_queries   int64 [Q, C], the same columns, item 0
    <split>_relevant, _seen            int32 item ids, sorted within a query, with <..>_indptr
    <split>_cold                       bool [Q]: the user has no training positive
    daily  int32 [R, 5]                with the sequence `exposures`: the start of a day before the
                                       test days in unix seconds, a scenario and an item, and how
                                       many rows were positives and how many exposures

Row 0 of the user tables is the unknown user, row 0 of the item tables is padding; both are zeros.
Column 0 of `users_sparse` and `items_sparse` is the row number itself. For every sequence an
example carries a pair of columns `<name>_start, <name>_stop` (for `scenario_history` one pair per
scenario, with `_<scenario id>` appended; see `Windows`): rows [start, stop) of the sequence are all
events of that user which came strictly before the example; readers take the last ones.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dsmoe_jax import disk, features
from dsmoe_jax.data import kept
from dsmoe_jax.data import manifest as manifest_lib

SPLITS = ("validation", "test")
DAY_S = 86_400


class Windows(NamedTuple):
    """A sequence's windows in the rows of training examples and queries.

    Attributes:
      sequence: Its name.
      num_scenarios: S where a row has a window per scenario; 0 where it has one.
    """

    sequence: str
    num_scenarios: int = 0

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in their order: start and stop of every window."""
        suffixes = [f"_{s}" for s in range(self.num_scenarios)] or [""]
        return [f"{self.sequence}_{end}{s}" for s in suffixes for end in ("start", "stop")]

    def read(
        self, rows_XC: np.ndarray, columns: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Starts and stops [X, windows], from rows whose columns have these places."""
        first, size = columns[self.columns[0]], len(self.columns)
        return rows_XC[:, first : first + size : 2], rows_XC[:, first + 1 : first + size : 2]


class Ragged(NamedTuple):
    """Rows of different lengths: row q is `items[indptr[q]:indptr[q + 1]]`.

    Attributes:
      indptr: int64 [Q + 1], ascending from 0.
      items: int32, item ids, sorted within a row and without repetition.
    """

    indptr: np.ndarray
    items: np.ndarray


class QueryTable(NamedTuple):
    """The evaluation queries of one split; a query is a (user, scenario) pair.

    Attributes:
      rows_QC: int64, columns as `Store.columns`; `item` is 0, `time_s` is the split's start, or
        with leave-one-out when the item held out was clicked.
      relevant: What the user clicked in that scenario in the split and, unless `Store.repeats`,
        had not clicked before it.
      seen: What the user clicked, in any kept scenario, before the split's first day or the item
        held out.
      cold_Q: bool, the user has no training positive.
    """

    rows_QC: np.ndarray
    relevant: Ragged
    seen: Ragged
    cold_Q: np.ndarray


class Store:
    """A prepared data set, opened for reading; arrays are memory-mapped.

    Attributes:
      root: The store's folder.
      manifest: What `manifest.json` holds.
      spec: All features of the store; its sequences have `max_len` 0 (not limited here).
      columns: Column index by name in `train_NC` and the queries.
      users_sparse, users_dense, users_bags: User tables; bags by feature name.
      items_sparse, items_dense, items_bags: Item tables; bags by feature name.
      users_raw_id, items_raw_id: The raw files' id of each row.
      sequences: `(ids_EF, time_E)` by sequence name.
      train_NC: Training examples, user-major and chronological.
    """

    def __init__(self, root: pathlib.Path, manifest: dict[str, Any]):
        self.root = root
        self.manifest = manifest
        self.spec = features.FeatureSpec.from_json(manifest["spec"])
        self.columns = {name: i for i, name in enumerate(manifest["columns"]["examples"])}
        spec = self.spec
        self.users_sparse, self.users_dense, self.users_raw_id = self._load_table("users")
        self.users_bags = {bag.name: self.load(f"users_bag_{bag.name}") for bag in spec.user_bags}
        self.items_sparse, self.items_dense, self.items_raw_id = self._load_table("items")
        self.items_bags = {bag.name: self.load(f"items_bag_{bag.name}") for bag in spec.item_bags}
        names = [sequence.name for sequence in spec.sequences]
        self.sequences = {
            n: (self.load(f"sequence_{n}"), self.load(f"sequence_{n}_time")) for n in names
        }
        self.train_NC = self.load("train")

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = False) -> "Store":
        """Opens the store at `path`; `verify` hashes every file again, else sizes are checked.

        Raises:
          ValueError: In one line, when there is no store or it is damaged.
        """
        root = pathlib.Path(path)
        manifest = manifest_lib.read(root)
        manifest_lib.check_files(root, manifest, verify)
        try:
            return cls(root, manifest)
        except (AttributeError, EOFError, KeyError, TypeError, ValueError) as error:
            # A store from before its manifest had a hash, or an array of equal size.
            raise manifest_lib.damaged(
                root / manifest_lib.FILE, "the store that was written", str(error) or repr(error)
            ) from error

    def load(self, name: str) -> np.ndarray:
        """The array `<name>.npy`, memory-mapped and read-only."""
        array: np.ndarray = np.load(self.root / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return array

    def _load_table(self, side: str) -> list[np.ndarray]:
        return [self.load(f"{side}_{name}") for name in ("sparse", "dense", "raw_id")]

    def first_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Users that have a row, ascending, and the first row of each [users, C].

        Training examples come before the queries, validation before test.
        """
        tables = [self.train_NC, *(self.queries(s).rows_QC for s in SPLITS)]
        # Rows may be many times the log: no copy of all of them is made.
        user_X = np.concatenate([table[:, self.columns["user"]] for table in tables])
        users, first = np.unique(user_X, return_index=True)
        rows = np.empty((len(users), len(self.columns)), np.int64)
        start = 0
        for table in tables:
            mine = (first >= start) & (first < start + len(table))
            rows[mine] = table[first[mine] - start]
            start += len(table)
        return users, rows

    def queries(self, split: str) -> QueryTable:
        """The queries of `split`, "validation" or "test".

        Raises:
          ValueError: On another split.
        """
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
        return QueryTable(
            rows_QC=self.load(f"{split}_queries"),
            relevant=Ragged(self.load(f"{split}_relevant_indptr"), self.load(f"{split}_relevant")),
            seen=Ragged(self.load(f"{split}_seen_indptr"), self.load(f"{split}_seen")),
            cold_Q=self.load(f"{split}_cold"),
        )

    @property
    def repeats(self) -> bool:
        """Whether what a user had clicked before is relevant again, see `schema.DataConfig`."""
        return bool(self.manifest["settings"].get("repeats", False))

    @property
    def data_hash(self) -> str:
        """64 hexadecimal digits that name the content of all arrays."""
        return str(self.manifest["data_hash"])


class GrowingArray:
    """An `.npy` file whose number of rows is known only at its end."""

    def __init__(self, path: pathlib.Path, dtype: np.dtype, num_columns: int):
        self.rows = 0
        self._dtype = dtype
        self._row_shape = (num_columns,) if num_columns else ()
        self._stream = path.open("wb")
        self._write_header()
        self._start = self._stream.tell()

    def append(self, block: np.ndarray) -> None:
        """Adds rows.

        Raises:
          ValueError: When the block's dtype or columns are not the array's.
        """
        if block.dtype != self._dtype or block.shape[1:] != self._row_shape:
            raise ValueError(
                f"{self._stream.name}: expected {self._dtype} rows of shape {self._row_shape}, got "
                f"{block.dtype} {block.shape}"
            )
        with disk.Writing(self._stream.name, block.nbytes):
            self._stream.write(np.ascontiguousarray(block).tobytes())
        self.rows += len(block)

    def close(self) -> None:
        """Writes the final number of rows; may be called twice."""
        if self._stream.closed:
            return
        with disk.Writing(self._stream.name), self._stream:
            self._stream.seek(0)
            self._write_header()
            # NumPy pads the header so that a longer shape still fits.
            assert self._stream.tell() == self._start

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._stream,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self.rows, *self._row_shape),
            },
        )


@contextlib.contextmanager
def open_partial(root: pathlib.Path, what: str) -> Iterator[pathlib.Path]:
    """`<root>.partial`, empty and of this process alone; removed at the end unless renamed.

    Raises:
      ValueError: When another process has it, which is doing `what`.
    """
    partial = root.with_name(root.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = os.open(partial, os.O_RDONLY)
        stack.callback(os.close, lock)
        # The lock goes with its process, so what a killed run left behind can be told from work
        # in progress.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{partial}: another process is {what}; wait for it to end") from None
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield partial


class StoreWriter:
    """Writes a store beside its place and renames it into place when everything is there.

    Use as a context manager; call `manifest` once inside. When the block raises, nothing remains;
    an older store at the same path stays until the new one is complete, and is then kept beside it
    by its content, see `kept.py`.

        with StoreWriter(path) as writer:
            writer.array("users_sparse", users_sparse_UF)
            events = writer.append_array("sequence_history", np.int32, num_columns=1)
            events.append(block_EF)
            writer.manifest(dataset=..., spec=..., columns=..., ...)

    Raises:
      ValueError: On entry, when `path` holds something that is not a store, or another process is
        writing the same store.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.root = pathlib.Path(path)
        self._names: list[str] = []
        self._stack = contextlib.ExitStack()
        self._growing: list[GrowingArray] = []
        self._manifest: dict[str, Any] | None = None

    def __enter__(self) -> "StoreWriter":
        if self.root.exists() and not manifest_lib.exists(self.root):
            if not self.root.is_dir():
                raise ValueError(f"{self.root}: expected a folder for the store, got a file")
            if any(self.root.iterdir()):
                raise ValueError(
                    f"{self.root}: expected a store or an empty folder, got other files and no "
                    f"{manifest_lib.FILE}; delete the folder if it was a store, or choose another"
                )
        self.partial = self._stack.enter_context(open_partial(self.root, "preparing this store"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            for growing in self._growing:
                # What is removed may be incomplete.
                with contextlib.suppress(*([OSError] if kind else [])):
                    growing.close()
            if kind is None:
                self._finish()

    def array(self, name: str, array: np.ndarray) -> None:
        """Writes `<name>.npy`."""
        if array.dtype.hasobject:
            raise ValueError(f"{name}: expected a plain dtype, got {array.dtype}")
        self._add(name)
        path = self.partial / f"{name}.npy"
        with disk.Writing(path, array.nbytes), path.open("wb") as stream:
            disk.allocate(stream.fileno(), array.nbytes)
            np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)

    def append_array(self, name: str, dtype: Any, num_columns: int = 0) -> "GrowingArray":
        """Creates `<name>.npy`, [rows] or [rows, num_columns], to be written block after block."""
        self._add(name)
        array = GrowingArray(self.partial / f"{name}.npy", np.dtype(dtype), num_columns)
        self._growing.append(array)
        return array

    def manifest(self, *, dataset: str, spec: features.FeatureSpec, **more: Any) -> None:
        """Sets the manifest's content; `format`, `files`, hashes and versions are added here.

        What `manifest.read` requires is `columns`, `settings` and `inputs` beside the spec.
        """
        described = {"scenarios": list(spec.scenarios), "spec": spec.to_json()}
        self._manifest = {"dataset": dataset, **described, **more}

    def _add(self, name: str) -> None:
        if name in self._names:
            raise ValueError(f"{name}: expected each array once, got it twice")
        self._names.append(name)

    def _finish(self) -> None:
        if self._manifest is None:
            raise ValueError(f"{self.root}: expected `manifest` to be called, it was not")
        files = manifest_lib.fingerprint(
            self.partial / f"{name}.npy" for name in sorted(self._names)
        )
        manifest = manifest_lib.seal(
            {
                "format": manifest_lib.FORMAT,
                **self._manifest,
                "files": files,
                "data_hash": manifest_lib.data_hash(files),
                "versions": manifest_lib.versions(),
            }
        )
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        path = self.partial / manifest_lib.FILE
        with disk.Writing(path, len(text)):
            path.write_text(text, encoding="utf-8")
        kept.replace(self.partial, self.root)
