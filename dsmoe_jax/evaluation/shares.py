"""Evaluation over several processes: each evaluates its part of the batches, one gather joins them.

Owns which rows are whose, what a failure in one process does to the others, and the gather. Does
not own which processes read and compute what before lists are found (`evaluators.py`).

Letters: Q queries, A queries of one process, P processes, X bytes of a reason.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

# Of why a process failed, what the others hear.
_REASON_BYTES = 400


class Share:
    """What this process evaluates; its block is what it does alone.

    With several processes an error inside `with share:` is held until `check`: raised at once, it
    would leave the others waiting for this one in the next program that they all run.

    Attributes:
      rows: Of a batch, those of this process; may reach beyond the batch, or lie behind it.
    """

    def __init__(self, batch_size: int | None = None, *, whole_batches: bool = False):
        """Splits batches of this size; none for one process.

        Rows are split as `pipeline.query_batches` does. `whole_batches` are taken in turns instead
        (`turn_to`): for what each process computes by itself, whose last bits may depend on the
        rows that are computed together.
        """
        self._is_split = batch_size is not None and jax.process_count() > 1
        self._in_turns = self._is_split and whole_batches
        self._failure: Exception | None = None
        self.rows = slice(None)
        if batch_size is not None and self._is_split:
            size = -(-batch_size // jax.process_count())
            self.rows = slice(jax.process_index() * size, (jax.process_index() + 1) * size)

    def turn_to(self, number: int) -> None:
        """Sets `rows` for a batch, which are numbered from 0; they change for whole batches."""
        if self._in_turns:
            is_own = number % jax.process_count() == jax.process_index()
            self.rows = slice(None) if is_own else slice(0)

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
          ValueError: In the others, with the process and its reason; the one raises what it held.
        """
        if not self._is_split:
            return
        reason = "" if self._failure is None else _describe(self._failure)
        # The end of a line that is cut may be half a letter.
        said = np.frombuffer(reason.encode()[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0"), np.uint8)
        said_PX = np.asarray(multihost_utils.process_allgather(said))
        if self._failure is not None:
            raise self._failure
        failed_P = said_PX.any(axis=1)
        if failed_P.any():
            first = int(np.argmax(failed_P))
            heard = said_PX[first].tobytes().rstrip(b"\0").decode(errors="ignore")
            raise ValueError(
                f"{what}: process {first} could not evaluate its share of the queries: {heard}"
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


def _describe(error: Exception) -> str:
    """One line that is never empty."""
    return " ".join(f"{type(error).__name__}: {error}".split())
