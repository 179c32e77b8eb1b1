"""Batches from a prepared store: example order, histories, the Grain pipeline, query batches.

Owns which examples make batch i of epoch e: a pure function of (seed, e, i), of which each process
reads its contiguous slice. So the global step alone says where a resumed run continues, on any
number of processes. Does not own negatives, which are drawn on the device.

Grain's elements are whole batches: per-row elements cost a hundred times more.

Letters: B examples of a batch, N of the training days, C columns of the store's row table, E
events, F fields, L history length, S scenarios, V items, U users.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib

# So few windows are copied one by one: views of all runs cost more than the copies.
_FEW_ROWS = 8


class UserState(NamedTuple):
    """Users and their events without a store: what `UserReader` reads of one.

    Attributes:
      spec: All features.
      columns: Column index by name in rows, as `store.Store.columns`.
      users_sparse, users_dense, users_bags: Features by row.
      sequences: `(ids_EF, time_E)` by name.
    """

    spec: features.FeatureSpec
    columns: Mapping[str, int]
    users_sparse: Int[np.ndarray, "U F"]
    users_dense: Float[np.ndarray, "U F2"]
    users_bags: Mapping[str, np.ndarray]
    sequences: Mapping[str, tuple[np.ndarray, np.ndarray]]


class UserReader:
    """Turns rows of the store's tables into `batch.Users` for the features of a run."""

    def __init__(self, store: store_lib.Store | UserState, spec: features.FeatureSpec):
        """Maps the run's features to the store's columns once."""
        self._columns: Mapping[str, int] = store.columns
        self._spec = spec
        # Plain views: every indexing of a memory map object costs microseconds.
        self._users_sparse = np.asarray(store.users_sparse)
        self._users_dense = np.asarray(store.users_dense)
        self._users_bags = {f.name: np.asarray(store.users_bags[f.name]) for f in spec.user_bags}
        self._sequences = {
            s.name: tuple(np.asarray(part) for part in store.sequences[_stored_name(s)])
            for s in spec.sequences
        }
        self._sparse_columns = _positions(spec.user_sparse, store.spec.user_sparse)
        self._dense_columns = _positions(spec.user_dense, store.spec.user_dense)

    def read(self, rows_BC: Int[np.ndarray, "B C"]) -> batch_lib.Users:
        """Gathers user features and the most recent events of every sequence."""
        columns, B = self._columns, len(rows_BC)
        user_B = rows_BC[:, columns["user"]]
        sequences = {}
        for sequence in self._spec.sequences:
            name = _stored_name(sequence)
            S = self._spec.num_scenarios if name == "scenario_history" else 0
            bounds = store_lib.Windows(name, S).read(rows_BC, columns)
            if sequence.per_scenario:
                start_B, stop_B = (bound_BS.reshape(-1) for bound_BS in bounds)
            else:
                which_B = rows_BC[:, columns["scenario"]] if S else 0
                start_B, stop_B = (bound_BX[np.arange(B), which_B] for bound_BX in bounds)
            ids_EF, time_E = self._sequences[sequence.name]
            L = sequence.max_len // (S if sequence.per_scenario else 1)
            window = read_window(ids_EF, time_E, start_B, stop_B, L)
            # The windows of a row, end to end.
            sequences[sequence.name] = batch_lib.Sequence(
                window.ids_BLF.reshape(B, sequence.max_len, -1),
                window.time_BL.reshape(B, sequence.max_len),
            )
        return batch_lib.Users(
            sparse_BF=self._users_sparse.take(user_B, axis=0).take(self._sparse_columns, axis=1),
            dense_BF=self._users_dense.take(user_B, axis=0).take(self._dense_columns, axis=1),
            bags={name: ids_UP.take(user_B, axis=0) for name, ids_UP in self._users_bags.items()},
            sequences=sequences,
            time_B=rows_BC[:, columns["time_s"]].astype(np.int32),
        )


def read_window(
    ids_EF: Int[np.ndarray, "E F"],
    time_E: Int[np.ndarray, "E"],
    start_B: Int[np.ndarray, "B"],
    stop_B: Int[np.ndarray, "B"],
    max_len: int,
) -> batch_lib.Sequence:
    """The last `max_len` events of every [start, stop), chronological, right-padded with 0.

    Copies `max_len` consecutive events a row and blanks what lies past the row's end: several times
    faster than to look every event up.
    """
    first_B = np.maximum(start_B, stop_B - max_len)
    if len(first_B) <= _FEW_ROWS:
        return _copy_windows(ids_EF, time_E, first_B, stop_B, max_len)
    valid_BL = _prefixes(max_len).take(stop_B - first_B, axis=0, mode="clip")
    ids_BLF = _runs(ids_EF, first_B, max_len)
    ids_BLF *= valid_BL[:, :, None]
    time_BL = _runs(time_E[:, None], first_B, max_len)[:, :, 0]
    time_BL *= valid_BL
    return batch_lib.Sequence(ids_BLF=ids_BLF, time_BL=time_BL)


def _copy_windows(
    ids_EF: np.ndarray, time_E: np.ndarray, first_B: np.ndarray, stop_B: np.ndarray, max_len: int
) -> batch_lib.Sequence:
    """The events of every [first, stop), window by window."""
    ids_BLF = np.zeros((len(first_B), max_len, ids_EF.shape[1]), ids_EF.dtype)
    time_BL = np.zeros((len(first_B), max_len), time_E.dtype)
    for b, (first, stop) in enumerate(zip(first_B.tolist(), stop_B.tolist(), strict=True)):
        length = max(0, stop - first)
        ids_BLF[b, :length], time_BL[b, :length] = ids_EF[first:stop], time_E[first:stop]
    return batch_lib.Sequence(ids_BLF=ids_BLF, time_BL=time_BL)


@functools.cache
def _prefixes(max_len: int) -> Int[np.ndarray, "lengths L"]:
    """Row n is n ones, then zeros."""
    return np.tri(max_len + 1, max_len, -1, dtype=np.int32)


def _runs(
    values_EF: Int[np.ndarray, "E F"], first_B: Int[np.ndarray, "B"], max_len: int
) -> Int[np.ndarray, "B L F"]:
    """A copy of `max_len` consecutive rows from each `first`; 0 past the end."""
    values_EF = np.ascontiguousarray(values_EF)
    num_columns = values_EF.shape[1]
    last = len(values_EF) - max_len
    # Only the few runs that reach past the end are taken from a padded copy of it.
    tail_EF = np.zeros((2 * max_len, num_columns), values_EF.dtype)
    if last < 0:
        tail_EF[: len(values_EF)] = values_EF
        values_EF, last = tail_EF, max_len
    runs = _overlapping(values_EF, max_len)[np.minimum(first_B, last)]
    late = np.flatnonzero(first_B > last)
    if len(late):
        tail_EF[:max_len] = values_EF[last:]
        runs[late] = _overlapping(tail_EF, max_len)[first_B[late] - last]
    return np.reshape(runs, (len(first_B), max_len, num_columns))


def _overlapping(values_EF: np.ndarray, max_len: int) -> np.ndarray:
    """A view: row i is rows i to i + `max_len` of a contiguous array, end to end."""
    width = values_EF.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(values_EF.ravel(), max_len * width)
    return windows[::width]


def read_corpus(
    store: store_lib.Store, spec: features.FeatureSpec, rows: slice = slice(None)
) -> batch_lib.Items:
    """Items of the store with the run's features; row = item id, row 0 is padding."""
    sparse_columns = _positions(spec.item_sparse, store.spec.item_sparse)
    dense_columns = _positions(spec.item_dense, store.spec.item_dense)
    return batch_lib.Items(
        sparse_VF=np.ascontiguousarray(store.items_sparse[rows][:, sparse_columns]),
        dense_VF=np.ascontiguousarray(store.items_dense[rows][:, dense_columns]),
        bags={f.name: np.asarray(store.items_bags[f.name][rows]) for f in spec.item_bags},
    )


def choose_examples(store: store_lib.Store, last_only: bool) -> Int[np.ndarray, "N"]:
    """Rows of the training examples of an epoch: all, or the last one of every user."""
    if not last_only:
        return np.arange(len(store.train_NC))
    user_N = np.asarray(store.train_NC[:, store.columns["user"]])
    return np.flatnonzero(np.append(user_N[1:] != user_N[:-1], True))


class BatchSource:
    """Random access to this process's slice of the training batches of a whole run.

    Element `step` is batch `step % steps_per_epoch` of epoch `step // steps_per_epoch`.

    Attributes:
      batch_size: Examples per batch over all processes.
      steps_per_epoch: Batches per epoch.
    """

    def __init__(
        self,
        store: store_lib.Store,
        spec: features.FeatureSpec,
        *,
        seed: int,
        batch_size: int,
        max_epochs: int,
        process_index: int = 0,
        process_count: int = 1,
        last_only: bool = False,
        share: str = "",
    ):
        """Checks that the batch fits the data and the processes.

        The seed decides the order of every epoch; with `last_only` only the last example of every
        user is read. `share` says of which examples `Batch.log_share_B` tells an item's share: of
        "all", of those in its "scenario", or empty for none.

        Raises:
          ValueError: When there are fewer examples than one batch, or processes do not divide it.
        """
        self._columns = store.columns
        self._train_NC = np.asarray(store.train_NC)
        self._example_N = choose_examples(store, last_only)
        num_examples = len(self._example_N)
        if num_examples < batch_size:
            raise ValueError(
                f"train.batch_size: expected at most the {num_examples} training examples, "
                f"got {batch_size}"
            )
        if batch_size % process_count:
            raise ValueError(
                f"train.batch_size: expected a multiple of the {process_count} processes, "
                f"got {batch_size}"
            )
        self._reader, self._seed, self.batch_size = UserReader(store, spec), seed, batch_size
        self._by_scenario = share == "scenario"
        self._log_share_SV = self._count_shares(store) if share else None
        self._local_size = batch_size // process_count
        self._offset = self._local_size * process_index
        # The last partial batch of an epoch is dropped; the next epoch's order reaches its rows.
        self.steps_per_epoch = num_examples // batch_size
        self._num_steps = self.steps_per_epoch * max_epochs
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self._num_steps

    def __repr__(self) -> str:
        # Grain compares this text when its iterator state is restored.
        return f"BatchSource(seed={self._seed}, batch_size={self.batch_size})"

    def __getitem__(self, step: int) -> batch_lib.Batch:
        epoch, index = divmod(int(step), self.steps_per_epoch)
        first = index * self.batch_size
        # Sorted reads follow the memory map; the order within a batch has no meaning. Sorting
        # before slicing keeps every example's position, and so its negatives, for any number of
        # processes.
        example_B = np.sort(self._epoch_order(epoch)[first : first + self.batch_size])
        mine_B = example_B[self._offset : self._offset + self._local_size]
        rows_BC = self._train_NC.take(mine_B, axis=0)
        scenario_B, item_B = (
            rows_BC[:, self._columns[name]].astype(np.int32) for name in ("scenario", "item")
        )
        log_share_B = None
        if self._log_share_SV is not None:
            log_share_B = self._log_share_SV[scenario_B if self._by_scenario else 0, item_B]
        return batch_lib.Batch(self._reader.read(rows_BC), scenario_B, item_B, log_share_B)

    def _count_shares(self, store: store_lib.Store) -> Float[np.ndarray, "S V"]:
        """Log share of every item in every scenario, or, of one row, over all; -inf for none."""
        V, S = store.spec.num_items, store.spec.num_scenarios if self._by_scenario else 1
        scenario_N, item_N = (
            self._train_NC[:, self._columns[name]][self._example_N] for name in ("scenario", "item")
        )
        place_N = (scenario_N if self._by_scenario else 0) * V + item_N
        count_SV = np.bincount(place_N, minlength=S * V).reshape(S, V)
        with np.errstate(divide="ignore"):
            log_SV = np.log(count_SV) - np.log(count_SV.sum(axis=1, keepdims=True))
        return np.asarray(log_SV, np.float32)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        cached_epoch, order = self._order
        if cached_epoch != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._example_N)
            self._order = (epoch, order)
        return order


def make_train_iterator(source: BatchSource, *, start: int) -> Iterator[batch_lib.Batch]:
    """A prefetching Grain iterator over the batches `start`, `start + 1`, ... of the source."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    return iter(grain.MapDataset.source(source)[start:].to_iter_dataset(options))


def query_batches(
    store: store_lib.Store,
    spec: features.FeatureSpec,
    split: str,
    query_ids: Int[np.ndarray, "Q"],
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[batch_lib.Queries]:
    """This process's slices of a split's queries in batches of one size.

    `query_ids` are rows of the split's query table, `batch_size` is that of all processes together,
    which divide it. Padding rows repeat a query under id -1.
    """
    rows_QC, reader = store.queries(split).rows_QC, UserReader(store, spec)
    size = batch_size // process_count
    mine = slice(process_index * size, (process_index + 1) * size)
    for first in range(0, len(query_ids), batch_size):
        ids = query_ids[first : first + batch_size]
        padded = np.concatenate([ids, np.full(batch_size - len(ids), ids[0])])
        query_Q = np.where(np.arange(batch_size) < len(ids), padded, -1).astype(np.int32)
        rows_BC = rows_QC[padded[mine]]
        yield batch_lib.Queries(
            users=reader.read(rows_BC),
            scenario_Q=rows_BC[:, store.columns["scenario"]].astype(np.int32),
            query_Q=query_Q[mine],
        )


def _stored_name(sequence: features.SequenceFeature) -> str:
    return "scenario_history" if sequence.per_scenario else sequence.name


def _positions(wanted: tuple[Any, ...], stored: tuple[Any, ...]) -> list[int]:
    names = [feature.name for feature in stored]
    return [names.index(feature.name) for feature in wanted]
