"""Metrics of the service, in Prometheus' text format.

Owns their names and labels. `scenario` is the name where a query asks for one, and "several" where
it asks for more, since these are computed together.
"""

import collections
from collections.abc import Mapping, Sequence

import prometheus_client

from dsmoe_jax.serving import lists as lists_lib
from dsmoe_jax.serving import retriever as retriever_lib

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
SEVERAL = "several"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What is counted, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = prometheus_client.CollectorRegistry()
        self._queue, self._tower, self._search = (
            prometheus_client.Histogram(
                f"dsmoe_{part}_seconds", text, ["scenario"], buckets=_SECONDS, registry=registry
            )
            for part, text in (
                ("queue", "From a query's arrival to its computation"),
                ("tower", "From raw values to user vectors, of all that is computed together"),
                ("search", "From user vectors to lists, of all that is computed together"),
            )
        )
        self._batch = prometheus_client.Histogram(
            "dsmoe_batch_queries",
            "Requests that were computed together",
            buckets=_SIZES,
            registry=registry,
        )
        self._items = prometheus_client.Counter(
            "dsmoe_items", "Items in lists", ["scenario"], registry=registry
        )
        self._lists = prometheus_client.Counter(
            "dsmoe_lists",
            "Lists by scenario and by what was known of the user: known, from_history or cold",
            ["scenario", "user"],
            registry=registry,
        )
        self._refused = prometheus_client.Counter(
            "dsmoe_refusals", "Requests without an answer", ["status"], registry=registry
        )
        self._recall = prometheus_client.Gauge(
            "dsmoe_live_recall",
            "Share of the exact list that the index in use finds, of probe users",
            ["scenario"],
            registry=registry,
        )
        self._bundle = prometheus_client.Gauge(
            "dsmoe_bundle", "1 for the bundle in use", ["digest"], registry=registry
        )

        self._shown: dict[prometheus_client.Gauge, set[str]] = {}

    def text(self) -> bytes:
        """All of it, for Prometheus."""
        return prometheus_client.generate_latest(self.registry)

    def batch(self, size: int) -> None:
        """Counts a computation."""
        self._batch.observe(size)

    def answered(
        self,
        scenario: str | list[str],
        queue_s: float,
        times: lists_lib.Times,
        answers: Sequence[lists_lib.Answer],
    ) -> None:
        """Counts a query that was answered."""
        one = scenario if isinstance(scenario, str) and scenario != retriever_lib.ALL else SEVERAL
        self._queue.labels(one).observe(queue_s)
        self._tower.labels(one).observe(times.tower_s)
        self._search.labels(one).observe(times.search_s)
        lists: collections.Counter[tuple[str, str]] = collections.Counter()
        items: collections.Counter[str] = collections.Counter()
        for answer in answers:
            lists[answer.scenario, answer.user] += 1
            items[answer.scenario] += len(answer.item_ids)
        for labels, count in lists.items():
            self._lists.labels(*labels).inc(count)
        for name, count in items.items():
            self._items.labels(name).inc(count)

    def refused(self, status: int) -> None:
        """Counts a request that was not answered."""
        self._refused.labels(str(status)).inc()

    def in_use(self, digest: str, recalls: Mapping[str, float]) -> None:
        """Names the bundle that answers, and the live recall of its index by scenario."""
        for gauge, values in ((self._bundle, {digest: 1.0}), (self._recall, recalls)):
            shown = self._shown.get(gauge, set())
            for label, value in values.items():
                gauge.labels(label).set(value)
            # Afterwards, so that nobody who reads meanwhile finds none.
            for label in shown - set(values):
                gauge.remove(label)
            self._shown[gauge] = set(values)
