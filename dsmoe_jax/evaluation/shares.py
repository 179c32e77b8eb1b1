"""Evaluation over several processes: each evaluates its rows of every batch, one gather joins them.

Owns which rows are whose, what a failure in one process does to the others, and the gather. Does
not own which processes read and compute what before lists are found (`evaluators.py`).

Letters: Q queries, A queries of one process, P processes.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils


class Share:
    """What this process evaluates; its block is what it does alone.

    With several processes an error inside `with share:` is held until `check`: raised at once, it
    would leave the others waiting for this one in the next program that they all run.

    Attributes:
      rows: Of a batch, those of this process; may reach beyond the batch, or lie behind it.
    """

    def __init__(self, batch_size: int | None = None):
        """Splits batches of this size, as `pipeline.query_batches` does; none for one process."""
        self._is_split = batch_size is not None and jax.process_count() > 1
        self._failure: Exception | None = None
        self.rows = slice(None)
        if batch_size is not None and self._is_split:
            size = -(-batch_size // jax.process_count())
            self.rows = slice(jax.process_index() * size, (jax.process_index() + 1) * size)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> bool:
        # Where devices failed, or another process ended, there is nothing left to wait for.
        is_lost = isinstance(error, jax.errors.JaxRuntimeError)
        if not self._is_split or is_lost or not isinstance(error, Exception):
            return False
        self._failure = self._failure or error
        return True

    def check(self, what: str) -> None:
        """Ends all processes when one could not evaluate its share; all of them call it.

        Raises:
          ValueError: In the others; the one raises what it held.
        """
        if not self._is_split:
            return
        failed_P = multihost_utils.process_allgather(np.int32(self._failure is not None))
        if self._failure is not None:
            raise self._failure
        if failed_P.any():
            raise ValueError(
                f"{what}: process {int(np.argmax(failed_P))} could not evaluate its share of the "
                "queries; its own message says why"
            )

    def gather(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of A rows of every process, joined in the order of the processes to Q rows.

        All processes call it, with columns of the same names and types; A may be 0.
        """
        if not self._is_split:
            return columns
        rows = len(next(iter(columns.values())))
        table_A = np.empty(rows, [(name, value.dtype) for name, value in columns.items()])
        for name, value_A in columns.items():
            table_A[name] = value_A
        count_P = multihost_utils.process_allgather(np.int32(rows))
        # As bytes, since JAX rounds numbers of 64 bits.
        padded = np.zeros((count_P.max(), table_A.itemsize), np.uint8)
        padded[:rows] = table_A.view(np.uint8).reshape(rows, table_A.itemsize)
        found = multihost_utils.process_allgather(padded)
        parts = [part[:count] for part, count in zip(found, count_P, strict=True)]
        table_Q = np.concatenate(parts).view(table_A.dtype)[:, 0]
        return {name: table_Q[name] for name in columns}
