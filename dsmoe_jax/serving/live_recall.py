"""Live recall: what share of the exact lists the index in use finds, now and again.

Owns the probe users and when they are asked. Both sides search the catalogue as it is at that
moment, items that came and went included.

Letters: Q queries, M interests, D a vector, T retrieved list length, X users.
"""

import concurrent.futures
import logging
import threading
from collections.abc import Callable

import numpy as np

from dsmoe_jax.serving import live, service_metrics, wire
from dsmoe_jax.serving import retriever as retriever_lib

# Length of the lists, and known users whose lists are compared.
_K, _PROBES = 100, 64
_log = logging.getLogger(__name__)


def measure(
    retriever: retriever_lib.Retriever, k: int = _K, probes: int = _PROBES
) -> dict[str, float]:
    """Recall@k of each scenario's index against exact search, of users spread over all known ones.

    Of an index that is exact it is 1 and nothing is searched.
    """
    users, found = retriever.encoder.users, retriever.catalogue
    spread_X = np.linspace(1, len(users), min(probes, len(users)))
    raw_ids = users.decode(spread_X.astype(int))
    recalls = {}
    for s, name in enumerate(retriever.scenarios):
        index = found.index(s)
        if index.is_exact or not raw_ids:
            recalls[name] = 1.0
            continue
        query_QMD = retriever.user_vectors(raw_ids, name)
        _, got_QT = index.search(query_QMD, k)
        _, expected_QT = index.exact().search(query_QMD, k)
        hits = [
            np.isin(expected_T[expected_T > 0], got_T)
            for got_T, expected_T in zip(got_QT, expected_QT, strict=True)
        ]
        # Where all items were removed nothing is missed.
        recalls[name] = float(np.concatenate(hits).mean()) if any(map(len, hits)) else 1.0
    return recalls


class Watch:
    """Measures what answers when it is told to and every so often, one after the other."""

    def __init__(
        self,
        current: Callable[[], live.Served],
        metrics: service_metrics.Metrics,
        every_s: float,
    ):
        """Starts its threads.

        Args:
          current: What answers.
          metrics: Where recall is shown.
          every_s: Seconds from the end of a measurement to the next; 0 for none but on request.
        """
        self._current, self._metrics, self._every_s = current, metrics, every_s
        self._stopping = threading.Event()
        self._asked: concurrent.futures.Future[None] | None = None
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "recall")
        self._timer = threading.Thread(target=self._repeat, name="recall timer", daemon=True)
        if every_s:
            self._timer.start()

    def ask(self) -> "concurrent.futures.Future[None]":
        """Measures soon; what waits already does for this too."""
        asked = self._asked
        if asked is None or asked.running() or asked.done():
            self._asked = asked = self._worker.submit(self._measure)
            asked.add_done_callback(_tell)
        return asked

    def close(self) -> None:
        """Ends both after the measurement that runs; those that wait are left out."""
        self._stopping.set()
        if self._timer.is_alive():
            self._timer.join()
        self._worker.shutdown(cancel_futures=True)

    def _repeat(self) -> None:
        while not self._stopping.wait(self._every_s):
            concurrent.futures.wait([self.ask()])

    def _measure(self) -> None:
        served = self._current()
        self._metrics.in_use(served.digest, measure(served.retriever))


def _tell(asked: "concurrent.futures.Future[None]") -> None:
    """Logs in one line why a measurement failed; the next is tried all the same."""
    error = None if asked.cancelled() else asked.exception()
    if error is not None:
        _log.error("no live recall: %s: %s", type(error).__name__, wire.one_line(error))
