"""Batches from a prepared store: example order, histories, the Grain pipeline, query batches.

Owns which examples make batch i of epoch e: a pure function of (seed, e, i), of which each process
reads its contiguous slice. So the global step alone says where a resumed run continues, on any
number of processes. Does not own negatives, which are drawn on the device.

Grain's elements are whole batches: per-row elements cost a hundred times more.

Letters: B examples, C columns of the store's row table, E events, F fields, L history length.
"""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib


class UserReader:
    """Turns rows of the store's tables into `batch.Users` for the features of a run."""

    def __init__(self, store: store_lib.Store, spec: features.FeatureSpec):
        """Maps the run's features to the store's columns once."""
        self._store = store
        self._spec = spec
        self._sparse_columns = _positions(spec.user_sparse, store.spec.user_sparse)
        self._dense_columns = _positions(spec.user_dense, store.spec.user_dense)

    def read(self, rows_BC: Int[np.ndarray, "B C"]) -> batch_lib.Users:
        """Gathers user features and the most recent events of every sequence."""
        store, columns = self._store, self._store.columns
        user_B = rows_BC[:, columns["user"]]
        sequences = {}
        for sequence in self._spec.sequences:
            if sequence.name == "scenario_history":
                start_B = _of_own_scenario(rows_BC, columns, "scenario_history_start")
                stop_B = _of_own_scenario(rows_BC, columns, "scenario_history_stop")
            else:
                start_B = rows_BC[:, columns[f"{sequence.name}_start"]]
                stop_B = rows_BC[:, columns[f"{sequence.name}_stop"]]
            ids_EF, time_E = store.sequences[sequence.name]
            sequences[sequence.name] = read_window(
                ids_EF, time_E, start_B, stop_B, sequence.max_len
            )
        return batch_lib.Users(
            sparse_BF=store.users_sparse[user_B][:, self._sparse_columns],
            dense_BF=store.users_dense[user_B][:, self._dense_columns],
            bags={f.name: store.users_bags[f.name][user_B] for f in self._spec.user_bags},
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
    """The last `max_len` events of every [start, stop), chronological, right-padded with 0."""
    first_B = np.maximum(start_B, stop_B - max_len)
    index_BL = first_B[:, None] + np.arange(max_len)[None]
    valid_BL = index_BL < stop_B[:, None]
    if not valid_BL.any():
        shape = (*index_BL.shape, ids_EF.shape[1])
        return batch_lib.Sequence(np.zeros(shape, np.int32), np.zeros(index_BL.shape, np.int32))
    index_BL = np.where(valid_BL, index_BL, 0)
    return batch_lib.Sequence(
        ids_BLF=ids_EF[index_BL] * valid_BL[:, :, None].astype(np.int32),
        time_BL=time_E[index_BL] * valid_BL.astype(np.int32),
    )


def read_corpus(
    store: store_lib.Store, spec: features.FeatureSpec, rows: slice = slice(None)
) -> batch_lib.Items:
    """Items of the store with the run's features; row = item id, row 0 is padding.

    Args:
      store: The prepared data.
      spec: The features of the run.
      rows: Which items; all by default.
    """
    sparse_columns = _positions(spec.item_sparse, store.spec.item_sparse)
    dense_columns = _positions(spec.item_dense, store.spec.item_dense)
    return batch_lib.Items(
        sparse_VF=np.ascontiguousarray(store.items_sparse[rows][:, sparse_columns]),
        dense_VF=np.ascontiguousarray(store.items_dense[rows][:, dense_columns]),
        bags={f.name: np.asarray(store.items_bags[f.name][rows]) for f in spec.item_bags},
    )


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
    ):
        """Checks that the batch fits the data and the processes.

        Args:
          store: The prepared data.
          spec: The features of the run.
          seed: Decides the order of every epoch.
          batch_size: Examples per batch over all processes.
          max_epochs: Epochs the source spans.
          process_index: This process, in [0, process_count).
          process_count: Processes that share each batch.

        Raises:
          ValueError: When there are fewer examples than one batch, or processes do not divide it.
        """
        num_examples = len(store.train_NC)
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
        self._store = store
        self._reader = UserReader(store, spec)
        self._seed = seed
        self.batch_size = batch_size
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
        rows_BC = self._store.train_NC[example_B[self._offset : self._offset + self._local_size]]
        columns = self._store.columns
        return batch_lib.Batch(
            users=self._reader.read(rows_BC),
            scenario_B=rows_BC[:, columns["scenario"]].astype(np.int32),
            item_B=rows_BC[:, columns["item"]].astype(np.int32),
        )

    def _epoch_order(self, epoch: int) -> np.ndarray:
        cached_epoch, order = self._order
        if cached_epoch != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(
                len(self._store.train_NC)
            )
            self._order = (epoch, order)
        return order


def make_train_iterator(source: BatchSource, *, start: int) -> Iterator[batch_lib.Batch]:
    """A prefetching Grain iterator over the batches `start`, `start + 1`, ... of the source."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    dataset = grain.MapDataset.source(source)[start:].to_iter_dataset(options)
    return iter(dataset)


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

    Padding rows repeat a query under id -1.

    Args:
      store: The prepared data.
      spec: The features of the run.
      split: "validation" or "test".
      query_ids: Rows of the split's query table.
      batch_size: Queries per batch over all processes, which divide it.
      process_index: This process, in [0, process_count).
      process_count: Processes that share each batch.
    """
    rows_QC = store.queries(split).rows_QC
    reader = UserReader(store, spec)
    scenario_column = store.columns["scenario"]
    size = batch_size // process_count
    mine = slice(process_index * size, (process_index + 1) * size)
    for first in range(0, len(query_ids), batch_size):
        ids = query_ids[first : first + batch_size]
        padded = np.concatenate([ids, np.full(batch_size - len(ids), ids[0])])
        query_Q = np.where(np.arange(batch_size) < len(ids), padded, -1).astype(np.int32)
        rows_BC = rows_QC[padded[mine]]
        yield batch_lib.Queries(
            users=reader.read(rows_BC),
            scenario_Q=rows_BC[:, scenario_column].astype(np.int32),
            query_Q=query_Q[mine],
        )


def _positions(wanted: tuple, stored: tuple) -> list[int]:
    names = [feature.name for feature in stored]
    return [names.index(feature.name) for feature in wanted]


def _of_own_scenario(
    rows_BC: Int[np.ndarray, "B C"], columns: dict[str, int], prefix: str
) -> Int[np.ndarray, "B"]:
    # The S columns of a prefix alternate with those of the other prefix: two apart.
    scenario_B = rows_BC[:, columns["scenario"]]
    return rows_BC[np.arange(len(rows_BC)), columns[f"{prefix}_0"] + 2 * scenario_B]
