"""Evaluation protocol: which queries, what is removed, metrics per query.

Owns the rules that hold for every system alike. Does not own the arithmetic of a metric
(`metrics.py`), search (`retrieval/`), how a system makes its lists (`evaluation/evaluators.py`) or
which process evaluates which (`evaluation/shares.py`).

A query is a (user, scenario) pair of a split with at least one relevant item; candidates are all
items of the corpus, in every scenario.

Letters: Q queries, B queries of a batch, A those of them that this process evaluates, all without
others, S scenarios, V rows of the corpus (row 0 is padding), T retrieved list length, P relevant
items of the batch, N negatives per relevant item.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from dsmoe_jax.config import schema
from dsmoe_jax.data import statistics
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import metrics, shares
from dsmoe_jax.retrieval import exact
from dsmoe_jax.retrieval import index as index_lib

# How the rules of `schema.EvalConfig.remove_seen` are called beside numbers.
RULES = {
    "none": "seen items kept",
    "positives": "seen items removed",
    "shown": "all items shown removed",
}


class Evaluation(NamedTuple):
    """Metrics of one system on some queries of a split, per query, ascending by query id.

    Attributes:
      split: "validation" or "test".
      scenarios: Names by scenario id.
      shares: Share of each scenario in the training examples.
      query_Q: Rows of the split's query table.
      scenario_Q: Scenario ids.
      cold_Q: Whether the user has no training positive.
      relevant_Q: Number of relevant items, at least 1.
      hits: Relevant items among the top k, by cut-off k.
      ndcg: NDCG by cut-off k.
      mrr_Q: Reciprocal rank of the first relevant item; None where it was not asked for.
      log_loss_Q: Mean log-loss of a query's positives and their sampled negatives, in nats; None
        for systems whose scores are no logits.
      num_candidates: Items that compete for each list, before removal.
      remove_seen: Which items were removed, see `schema.EvalConfig`.
    """

    split: str
    scenarios: tuple[str, ...]
    shares: tuple[float, ...]
    query_Q: Int[np.ndarray, "Q"]
    scenario_Q: Int[np.ndarray, "Q"]
    cold_Q: Bool[np.ndarray, "Q"]
    relevant_Q: Int[np.ndarray, "Q"]
    hits: dict[int, Int[np.ndarray, "Q"]]
    ndcg: dict[int, Float[np.ndarray, "Q"]]
    mrr_Q: Float[np.ndarray, "Q"] | None
    log_loss_Q: Float[np.ndarray, "Q"] | None
    num_candidates: int
    remove_seen: str

    @property
    def recall(self) -> dict[int, Float[np.ndarray, "Q"]]:
        """|top-k and relevant| / |relevant| by cut-off k, in [0, 1].

        **Paper:** section "Experimental Settings", Recall@K. Its denominator is the full set: with
        more than k relevant items even a perfect list stays below 1.
        """
        return {k: hits_Q / self.relevant_Q for k, hits_Q in self.hits.items()}

    @property
    def hit_rate(self) -> dict[int, Float[np.ndarray, "Q"]]:
        """1 where any of the top k is relevant, else 0, by cut-off k."""
        return {k: np.asarray(hits_Q > 0, np.float64) for k, hits_Q in self.hits.items()}

    def restrict(self, query_Q: Int[np.ndarray, "Q2"]) -> "Evaluation":
        """The evaluation of the given queries alone.

        Raises:
          ValueError: If one of them was not evaluated.
        """
        missing = np.setdiff1d(query_Q, self.query_Q)
        if len(missing):
            raise ValueError(
                f"query {int(missing[0])} of {self.split}: expected an evaluated query, got one of "
                f"{len(missing)} that were not"
            )
        return self._take(np.isin(self.query_Q, query_Q))

    def summarise(self) -> dict[str, Any]:
        """Scenarios, macro average and cold users, in the schema of results.json.

        Recalls are fractions; `macro` is the unweighted mean over scenarios that have queries. The
        metrics of a scenario without queries are NaN.
        """
        summary = self._summarise_scenarios()
        cold = self._take(self.cold_Q)._summarise_scenarios()
        return {**summary, "cold": cold}

    def describe(self) -> str:
        """One line: what was asked, of what, and by which rule."""
        count_S = np.bincount(self.scenario_Q, minlength=len(self.scenarios))
        counts = ", ".join(
            f"{name} {count:,}" for name, count in zip(self.scenarios, count_S, strict=True)
        )
        return (
            f"{self.split}: {self.num_candidates:,} candidates in every scenario, "
            f"{len(self.query_Q):,} queries ({counts}), k = {', '.join(map(str, self.hits))}, "
            f"{RULES[self.remove_seen]}"
        )

    def _take(self, mask_Q: np.ndarray) -> "Evaluation":
        taken: Evaluation = jax.tree.map(
            lambda leaf: leaf[mask_Q] if isinstance(leaf, np.ndarray) else leaf, self
        )
        return taken

    def _summarise_scenarios(self) -> dict[str, Any]:
        columns = {
            f"{name}@{k}": value_Q
            for name in ("recall", "hit_rate", "ndcg")
            for k, value_Q in getattr(self, name).items()
        }
        if self.mrr_Q is not None:
            columns["mrr"] = self.mrr_Q
        masks = [self.scenario_Q == scenario for scenario in range(len(self.scenarios))]
        table = {
            name: [metrics.estimate(value_Q[mask]) for mask in masks]
            for name, value_Q in columns.items()
        }
        rows: dict[str, dict[str, float]] = {}
        for i, name in enumerate(self.scenarios):
            rows[name] = {"share": self.shares[i], "queries": int(masks[i].sum())}
            rows[name] |= _as_row({key: entries[i] for key, entries in table.items()})
            if self.log_loss_Q is not None:
                # Every positive weighs the same, as it does in training.
                weight_Q = self.relevant_Q[masks[i]]
                total = float(self.log_loss_Q[masks[i]] @ weight_Q)
                rows[name]["log_loss"] = total / int(weight_Q.sum()) if len(weight_Q) else np.nan
        macro = _as_row({key: metrics.macro(entries) for key, entries in table.items()})
        return {"scenarios": rows, "macro": macro}


def sample_queries(
    store: store_lib.Store, split: str, per_scenario: int | None, seed: int
) -> Int[np.ndarray, "Q"]:
    """Ids of at most `per_scenario` queries of each scenario (all of them for None), ascending.

    A function of the store, the split and the seed; a larger sample of a scenario contains every
    smaller one, so that systems evaluated on samples of different sizes share queries.
    """
    scenario_Q = _scenario_of(store, store.queries(split))
    order_Q = np.random.default_rng(seed).permutation(len(scenario_Q))
    chosen = [
        order_Q[scenario_Q[order_Q] == scenario][:per_scenario]
        for scenario in range(store.spec.num_scenarios)
    ]
    return np.sort(np.concatenate(chosen))


def compare(
    first: Evaluation, second: Evaluation, k: int, *, seed: int = 0
) -> dict[str, metrics.Interval]:
    """Recall@k of `first` minus that of `second`, paired by query, by scenario and macro.

    Raises:
      ValueError: If they were not evaluated on the same queries.
    """
    if first.split != second.split or not np.array_equal(first.query_Q, second.query_Q):
        raise ValueError(
            f"comparison: expected the same queries, got {len(first.query_Q)} of {first.split} "
            f"and {len(second.query_Q)} of {second.split}; restrict both to the shared ones"
        )
    found = metrics.paired_bootstrap(
        first.recall[k] - second.recall[k], first.scenario_Q, len(first.scenarios), seed=seed
    )
    return dict(zip((*first.scenarios, "macro"), found, strict=True))


def read_removed(
    store: store_lib.Store, table: store_lib.QueryTable, rule: str
) -> store_lib.Ragged:
    """The items that a rule of `schema.EvalConfig.remove_seen` removes from each query's list.

    Raises:
      ValueError: On another rule.
    """
    if rule not in RULES:
        raise ValueError(f"eval.remove_seen: expected one of {tuple(RULES)}, got {rule!r}")
    if rule == "none":
        return store_lib.Ragged(np.zeros(len(table.rows_QC) + 1, np.int64), np.zeros(0, np.int32))
    if rule == "positives":
        return table.seen
    shown_QV = statistics.read_windows(store, table.rows_QC, statistics.SHOWN)
    return store_lib.Ragged(shown_QV.indptr, shown_QV.indices)


class Protocol:
    """Collects the lists of one system, batch by batch, and makes an `Evaluation`."""

    def __init__(
        self,
        store: store_lib.Store,
        config: schema.EvalConfig,
        split: str,
        share: shares.Share | None = None,
    ):
        """Opens the query table of a split, "validation" or "test"; ValueError on another.

        `share` is what this process evaluates, everything by default. Where it is a part, all
        processes add lists of the same batches and call `finish`.
        """
        self.split, self._share = split, share or shares.Share()
        self._store, self._config = store, config
        self._length = max(config.k[-1], config.mrr_depth)
        self._table = store.queries(split)
        self._scenario_Q = _scenario_of(store, self._table)
        self._removed = read_removed(store, self._table, config.remove_seen)
        self._removed_count_Q = np.diff(self._removed.indptr)
        self._parts: list[dict[str, np.ndarray]] = []
        self._losses: list[np.ndarray] = []

    def group_by_scenario(
        self, query_Q: Int[np.ndarray, "Q"], batch_size: int
    ) -> Iterator[tuple[int, Int[np.ndarray, "B"]]]:
        """Batches of query ids of one scenario each, scenario by scenario.

        Within a scenario, users with few items to remove come first: their lists are shortest.
        """
        for scenario in range(self._store.spec.num_scenarios):
            ids = query_Q[self._scenario_Q[query_Q] == scenario]
            ids = ids[np.lexsort((ids, self._removed_count_Q[ids]))]
            for start in range(0, len(ids), batch_size):
                yield scenario, ids[start : start + batch_size]

    def list_length(self, query_B: Int[np.ndarray, "B"]) -> int:
        """The length a batch's lists need so that enough entries remain after removal.

        Room for removed items is a power of two, so that search compiles for few lengths.
        """
        removed = int(self._removed_count_Q[query_B].max())
        room = max(16, 1 << (removed - 1).bit_length()) if removed else 0
        return min(self._length + room, self._store.spec.num_items - 1)

    def add_lists(
        self,
        query_B: Int[np.ndarray, "B"],
        score_AT: Float[np.ndarray | jax.Array, "rows T"],
        item_AT: Int[np.ndarray | jax.Array, "rows T"],
    ) -> None:
        """Evaluates retrieved lists of at least `list_length` entries.

        The lists are those of this process's share of the batch; rows past A are padding.
        """
        own = self._share.rows
        query_A = query_B[own]
        _, item_AT = self.cut_lists(query_A, score_AT, item_AT)
        relevant = metrics.take_rows(self._table.relevant, query_A)
        relevant_A = np.diff(relevant.indptr)
        hit_AT = metrics.find_members(item_AT, relevant)
        # The last bit of a row's NDCG depends on the row's place among those it is computed with.
        hit_BT = np.zeros((len(query_B), hit_AT.shape[1]), bool)
        relevant_B = np.ones(len(query_B), relevant_A.dtype)
        hit_BT[own], relevant_B[own] = hit_AT, relevant_A
        part = {"query": query_A, "relevant": relevant_A}
        for cut in self._config.k:
            part[f"hits@{cut}"] = metrics.hits_at_k(hit_AT, cut)
            part[f"ndcg@{cut}"] = metrics.ndcg_at_k(hit_BT, relevant_B, cut)[own]
        if self._config.mrr_depth:
            part["mrr"] = metrics.reciprocal_rank(hit_AT, self._config.mrr_depth)
        self._parts.append(part)

    def cut_lists(
        self,
        query_B: Int[np.ndarray, "B"],
        score_BT: Float[np.ndarray | jax.Array, "rows T"],
        item_BT: Int[np.ndarray | jax.Array, "rows T"],
    ) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
        """What is evaluated of retrieved lists: their first entries that are not removed."""
        B = len(query_B)
        score_BT, item_BT = np.asarray(score_BT)[:B], np.asarray(item_BT)[:B]
        if not len(self._removed.items):
            return score_BT[:, : self._length], item_BT[:, : self._length]
        removed_BT = metrics.find_members(item_BT, metrics.take_rows(self._removed, query_B))
        return index_lib.drop(score_BT, item_BT, removed_BT, self._length)

    def add_scores(self, query_B: Int[np.ndarray, "B"], score_AV: Float[np.ndarray, "A V"]) -> None:
        """Evaluates scores of the whole corpus; writes -inf over removed items in `score_AV`."""
        removed = metrics.take_rows(self._removed, query_B[self._share.rows])
        score_AV[metrics.row_of(removed), removed.items] = -np.inf
        self.add_lists(query_B, *exact.top_k(score_AV, self._length))

    def add_log_loss(
        self,
        query_B: Int[np.ndarray, "B"],
        logit_AV: Float[np.ndarray, "A V"],
        num_negatives: int,
        seed: int,
    ) -> None:
        """Mean log-loss of every query's relevant items and their uniform negatives.

        Call before `add_scores`. Negatives are drawn as in training: from all items but the
        positive itself; which ones depends on the seed and the split alone.
        """
        table = self._table.relevant
        draw = np.random.default_rng(seed).integers(
            1, self._store.spec.num_items - 1, (len(table.items), num_negatives), dtype=np.int32
        )
        draw += draw >= np.asarray(table.items)[:, None]
        entry = store_lib.Ragged(table.indptr, np.arange(len(table.items)))
        chosen = metrics.take_rows(entry, query_B[self._share.rows])
        positive_P1 = np.asarray(table.items)[chosen.items][:, None]
        item_PG = np.concatenate([positive_P1, draw[chosen.items]], axis=1)
        row_P = metrics.row_of(chosen)
        label_PG = np.zeros(item_PG.shape, bool)
        label_PG[:, 0] = True
        loss_P = metrics.log_loss(logit_AV[row_P[:, None], item_PG], label_PG).mean(axis=1)
        sum_A = np.bincount(row_P, weights=loss_P, minlength=len(chosen.indptr) - 1)
        self._losses.append(sum_A / np.diff(chosen.indptr))

    def finish(self) -> Evaluation:
        """The evaluation of everything added, by all processes.

        Raises:
          ValueError: If nothing was, or another process could not evaluate its share.
        """
        self._share.check(self.split)
        if not self._parts:
            raise ValueError(f"{self.split}: expected at least one query to evaluate, got none")
        column = {
            name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]
        }
        if self._losses:
            column["log_loss"] = np.concatenate(self._losses)
        column = self._share.gather(column)
        order_Q = np.argsort(column["query"])
        column = {name: value_Q[order_Q] for name, value_Q in column.items()}
        store, query_Q = self._store, column["query"]
        count_S = [store.manifest["counts"]["train"][name] for name in store.spec.scenarios]
        return Evaluation(
            split=self.split,
            scenarios=store.spec.scenarios,
            shares=tuple(count / sum(count_S) for count in count_S),
            query_Q=query_Q,
            scenario_Q=self._scenario_Q[query_Q],
            cold_Q=np.asarray(self._table.cold_Q)[query_Q],
            relevant_Q=column["relevant"],
            hits={k: column[f"hits@{k}"] for k in self._config.k},
            ndcg={k: column[f"ndcg@{k}"] for k in self._config.k},
            mrr_Q=column.get("mrr"),
            log_loss_Q=column.get("log_loss"),
            num_candidates=store.spec.num_items - 1,
            remove_seen=self._config.remove_seen,
        )


def _scenario_of(store: store_lib.Store, table: store_lib.QueryTable) -> np.ndarray:
    return np.asarray(table.rows_QC[:, store.columns["scenario"]]).astype(np.int32)


def _as_row(estimates: dict[str, metrics.Estimate]) -> dict[str, float]:
    row = {}
    for name, (mean, error) in estimates.items():
        row[name] = mean
        if name.startswith("recall"):
            row[f"{name}_se"] = error
    return row
