"""Full-corpus evaluation of a matcher, a ranker or anything else that scores the corpus.

Owns how a system's lists are made: a matcher embeds the corpus per scenario and is searched through
an index; a ranker scores the catalogue by brute force. Which queries there are and how lists
are evaluated is in `evaluation/protocol.py`. No parameter is trained here, and models run as in
serving (`train=False`). All processes make the lists together; each evaluates its own
(`evaluation/shares.py`).

Letters: Q queries of a split, B queries of a batch, A those of this process, V rows of the corpus
(row 0 is padding), T retrieved list length, D tower output, G candidates of a chunk, Z devices, W
rows of a device's shard.
"""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features, runlog
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline, statistics
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import protocol, shares
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.models.ranking import ranker as ranker_lib
from dsmoe_jax.retrieval import exact
from dsmoe_jax.retrieval import index as index_lib
from dsmoe_jax.training import sharding, train_state

# (user, item) pairs that a ranker scores at once on a device: at most about 1 GB of activations
# for a ranker that attends over 50 events; on a CPU what its caches hold, for 0.6 of the time.
_PAIRS_PER_DEVICE = 1 << 15
_PAIRS_PER_CPU = 1 << 12
# Bytes of scores [B, V] held at once.
_SCORE_BYTES = 1 << 28
# Uniform negatives of a ranker's log-loss per relevant item.
_NUM_NEGATIVES = 4

Model = TypeVar("Model", bound=nn.Module)
# Scores and item ids [rows T].
Lists = tuple[Any, ...]
# Scores of every item for the queries with these ids (rows of the split's query table).
Scores = Callable[[np.ndarray], np.ndarray | jax.Array]


class Evaluator(Generic[Model]):
    """Compiled functions of a model: make one per model and call it after every epoch."""

    # Queries that a device is given at once, at most.
    _MOST_QUERIES = 1 << 30

    def __init__(
        self,
        store: store_lib.Store,
        spec: features.FeatureSpec,
        corpus: batch_lib.Items,
        model: Model,
        config: schema.EvalConfig,
        mesh: jax.sharding.Mesh,
        *,
        seed: int = 0,
    ):
        """Builds the functions, which compile at the first call.

        Queries and corpus, all items, are split over the devices of the mesh. The seed is that of
        a log-loss's negatives.
        """
        self._store, self._spec, self._corpus, self._config = store, spec, corpus, config
        self._mesh, self._model, self._seed = mesh, model, seed
        per_device = min(self._MOST_QUERIES, sharding.shard_rows(config.query_batch, mesh.size))
        self._batch_size = per_device * mesh.size
        self._changing = statistics.changing_constants(store, model.constant_shapes)
        self._constants: dict[str, dict[str, jax.Array]] = {}
        self._build()

    def _build(self) -> None:
        """Makes the functions."""
        raise NotImplementedError

    def _begin(
        self, frozen: train_state.Frozen, split: str, share: shares.Share
    ) -> tuple[train_state.Frozen, protocol.Protocol]:
        """The model with what is known when a split's queries are asked, and the protocol.

        All processes have read what they need before the first program that they all run.
        """
        values: dict[str, np.ndarray] = {}
        with share:
            rules = protocol.Protocol(self._store, self._config, split, share)
            if self._changing and split not in self._constants:
                values = statistics.make_constants(self._store, self._changing, split)
        share.check(split)
        if not self._changing:
            return frozen, rules
        if values:
            self._constants[split] = sharding.put_replicated(self._mesh, values)
        constants = {**frozen.model_state["constants"], **self._constants[split]}
        known = frozen._replace(model_state={**frozen.model_state, "constants": constants})
        return known, rules

    def _read_queries(
        self, split: str, ids: np.ndarray, share: shares.Share
    ) -> tuple[batch_lib.Users, jax.Array]:
        """Users and scenarios of one batch of queries, of which each process reads its slice.

        A process that cannot read them gives zeros: the others wait for it in the next program.
        """
        read: tuple[batch_lib.Users, Any] | None = None
        with share:
            batches = pipeline.query_batches(
                self._store,
                self._spec,
                split,
                ids,
                self._batch_size,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            batch = next(batches)
            read = batch.users, batch.scenario_Q
        read = read or _make_zeros(self._spec, self._batch_size // jax.process_count())
        placed: tuple[batch_lib.Users, jax.Array] = sharding.put_batch(self._mesh, read)
        return placed


class MatcherEvaluator(Evaluator[two_tower.Matcher]):
    """Evaluates a matcher through an index of its item vectors."""

    def _build(self) -> None:
        self._embed_users = jax.jit(
            lambda frozen, users, scenario_B: _apply(
                self._model, frozen, users, scenario_B, method="embed_user"
            )[0],
            out_shardings=sharding.replicated(self._mesh),
        )
        # FAISS wants the whole corpus on the host of every process.
        layout = sharding.replicated if self._config.backend == "faiss" else sharding.by_rows
        self._embed_corpus = jax.jit(self._trace_corpus, out_shardings=layout(self._mesh))

    def __call__(
        self, frozen: train_state.Frozen, split: str, query_Q: Int[np.ndarray, "Q"]
    ) -> protocol.Evaluation:
        """Evaluates the parameters on the given queries of a split."""
        # FAISS searches on every host by itself, so that whole batches are searched in turns.
        share = shares.Share(self._batch_size, whole_batches=self._config.backend == "faiss")
        frozen, rules = self._begin(frozen, split, share)
        groups = list(rules.group_by_scenario(query_Q, self._batch_size))
        index: index_lib.Index | None = None
        indexed = -1

        def add(number: int, ids: np.ndarray, lists: Lists) -> None:
            with share:
                share.turn_to(number)
                rules.add_lists(ids, *lists)

        with _progress(f"evaluate {split}", len(groups)) as bar:
            pending: list[tuple[int, np.ndarray, Lists]] = []
            for number, (scenario, ids) in enumerate(groups):
                if indexed < 0 or (self._model.item_uses_scenario and scenario != indexed):
                    index, indexed = None, scenario  # frees the former index first
                    index = self._make_index(frozen, scenario, share)
                share.turn_to(number)
                pending.append((number, ids, self._search(frozen, index, rules, ids, share)))
                # The host evaluates one batch while the devices search the next.
                if len(pending) > 1:
                    add(*pending.pop(0))
                bar.update()
            for batch in pending:
                add(*batch)
        return rules.finish()

    def embed_corpus(self, frozen: train_state.Frozen, scenario: int) -> Float[jax.Array, "rows D"]:
        """Item vectors in a scenario, row = item id; rows from V on are padding."""
        item_VD: jax.Array = self._embed_corpus(frozen, self._corpus, jnp.int32(scenario))
        return item_VD

    def lower_embed_corpus(self, frozen: train_state.Frozen) -> jax.stages.Lowered:
        """`embed_corpus`, lowered for arrays, or their shapes, in their layout: to look at."""
        return self._embed_corpus.lower(frozen, self._corpus, jnp.int32(0))

    def _make_index(
        self, frozen: train_state.Frozen, scenario: int, share: shares.Share
    ) -> index_lib.Index | None:
        """The index of a scenario; none where this process could not make its own."""
        item_VD = self.embed_corpus(frozen, scenario)
        if self._config.backend != "faiss":
            return exact.ExactIndex(item_VD, num_rows=self._spec.num_items, mesh=self._mesh)
        index: index_lib.Index | None = None
        with share:
            from dsmoe_jax.retrieval import faiss_index  # an optional extra

            index = faiss_index.FaissIndex(np.asarray(item_VD)[: self._spec.num_items])
        return index

    def _search(
        self,
        frozen: train_state.Frozen,
        index: index_lib.Index | None,
        rules: protocol.Protocol,
        ids: np.ndarray,
        share: shares.Share,
    ) -> Lists:
        """The lists of this process's rows of a batch."""
        users, scenario_B = self._read_queries(rules.split, ids, share)
        query_BMD = self._embed_users(frozen, users, scenario_B)
        k = rules.list_length(ids)
        if self._config.backend == "faiss":
            lists: Lists = (np.zeros((0, k), np.float32), np.zeros((0, k), np.int32))
            with share:
                if index is not None and len(ids[share.rows]):
                    lists = index.search(query_BMD, k)
            return lists
        assert index is not None
        found: Lists = index.search(query_BMD, k)
        if jax.process_count() > 1:
            # The lists of other processes stay off this host.
            found = tuple(part.addressable_data(0)[share.rows] for part in found)
        return found

    def _trace_corpus(
        self, frozen: train_state.Frozen, corpus: batch_lib.Items, scenario: jax.Array
    ) -> jax.Array:
        # Device z owns rows [z * W, (z + 1) * W), as `sharding.put_rows` lays a large corpus out,
        # and embeds them in chunks of its own: features are read and vectors are made where they
        # stay, and only one chunk's activations are held.
        Z = self._mesh.size
        W = sharding.shard_rows(self._spec.num_items, Z)
        chunk = min(sharding.shard_rows(self._config.item_batch, Z), W)
        by_rows = sharding.by_rows(self._mesh)

        def split(leaf: jax.Array) -> jax.Array:
            missing = Z * W - leaf.shape[0]
            leaf = jnp.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)))
            leaf_ZW = leaf.reshape(Z, W, *leaf.shape[1:])
            own: jax.Array = jax.lax.with_sharding_constraint(leaf_ZW, by_rows)
            return own

        items_ZW = jax.tree.map(split, corpus)

        def embed(start: jax.Array) -> jax.Array:
            def take(leaf: jax.Array) -> jax.Array:
                part = jax.lax.dynamic_slice_in_dim(leaf, start, chunk, axis=1)
                return part.reshape(Z * chunk, *leaf.shape[2:])

            items = jax.tree.map(take, items_ZW)
            scenario_B = jnp.full(Z * chunk, scenario, jnp.int32)
            item_BD, _ = _apply(self._model, frozen, items, scenario_B, method="embed_item")
            return jnp.reshape(item_BD, (Z, chunk, -1))

        def fill(step: jax.Array, item_ZWD: jax.Array) -> jax.Array:
            # The last chunk reaches back to stay inside the shard.
            start = jnp.minimum(step * chunk, W - chunk)
            item_ZWD = jax.lax.dynamic_update_slice_in_dim(item_ZWD, embed(start), start, axis=1)
            filled_ZWD: jax.Array = jax.lax.with_sharding_constraint(item_ZWD, by_rows)
            return filled_ZWD

        like = jax.eval_shape(embed, jnp.int32(0))
        empty_ZWD = jax.lax.with_sharding_constraint(
            jnp.zeros((Z, W, like.shape[2]), like.dtype), by_rows
        )
        item_ZWD = jax.lax.fori_loop(0, -(-W // chunk), fill, empty_ZWD)
        return jnp.reshape(item_ZWD, (Z * W, -1))


class RankerEvaluator(Evaluator[ranker_lib.Ranker]):
    """Evaluates a ranker by brute force over the catalogue."""

    _MOST_QUERIES = 64

    def _build(self) -> None:
        ranker, V = self._model, self._spec.num_items
        is_cpu = self._mesh.devices.flat[0].platform == "cpu"
        pairs = _PAIRS_PER_CPU if is_cpu else _PAIRS_PER_DEVICE
        G = min(V, pairs * self._mesh.size // self._batch_size)

        def score(
            frozen: train_state.Frozen,
            corpus: batch_lib.Items,
            users: batch_lib.Users,
            scenario_B: jax.Array,
        ) -> jax.Array:
            encoded = _apply(ranker, frozen, users, scenario_B, method="encode_user")

            def score_chunk(start: jax.Array) -> jax.Array:
                id_1G = jnp.minimum(start + jnp.arange(G), V - 1)[None]
                items = batch_lib.take_items(corpus, id_1G)
                logit_BG: jax.Array = _apply(
                    ranker, frozen, encoded, items, scenario_B, method="score"
                )
                return logit_BG

            logit_BXG = jax.lax.map(score_chunk, jnp.arange(0, V, G)).swapaxes(0, 1)
            return jnp.reshape(logit_BXG, (len(scenario_B), -1))[:, :V]

        self._score = jax.jit(score, out_shardings=sharding.by_rows(self._mesh))

    def __call__(
        self, frozen: train_state.Frozen, split: str, query_Q: Int[np.ndarray, "Q"]
    ) -> protocol.Evaluation:
        """Evaluates the parameters on the given queries of a split, log-loss included."""
        share = shares.Share(self._batch_size)
        frozen, rules = self._begin(frozen, split, share)
        for ids in _batches(split, query_Q, self._batch_size):
            users, scenario_B = self._read_queries(split, ids, share)
            score_BV = self._score(frozen, self._corpus, users, scenario_B)
            with share:
                score_AV = np.array(sharding.read_batch(score_BV))[: len(ids[share.rows])]
                rules.add_log_loss(ids, score_AV, _NUM_NEGATIVES, self._seed)
                rules.add_scores(ids, score_AV)
        return rules.finish()


def evaluate_scores(
    store: store_lib.Store,
    config: schema.EvalConfig,
    split: str,
    query_Q: Int[np.ndarray, "Q"],
    scores: Scores,
    *,
    batch_size: int | None = None,
    num_negatives: int = 0,
    seed: int = 0,
) -> protocol.Evaluation:
    """Evaluates anything that scores the whole corpus.

    Of several processes all call it: they score and evaluate whole batches in turns.

    Args:
      store: The prepared data.
      config: Cut-offs, batch size and removal rule.
      split: "validation" or "test".
      query_Q: Rows of the split's query table.
      scores: Maps at most `batch_size` query ids to scores [B, V], column = item id (column 0 is
        ignored); rows past the given ids are padding.
      batch_size: Queries scored at once; `config.query_batch`, or what memory allows.
      num_negatives: Uniform negatives per relevant item; above 0, scores are read as logits and
        their log-loss is evaluated.
      seed: Of the negatives, which are the same for every system.
    """
    if batch_size is None:
        batch_size = fit_rows(store.spec.num_items, at_most=config.query_batch)
    share = shares.Share(batch_size, whole_batches=True)
    with share:
        rules = protocol.Protocol(store, config, split, share)
    share.check(split)
    for number, ids in enumerate(_batches(split, query_Q, batch_size)):
        share.turn_to(number)
        with share:
            if len(ids[share.rows]):
                # A copy: seen items are struck out.
                score_AV = np.array(np.asarray(scores(ids))[: len(ids)])
            else:
                score_AV = np.zeros((0, store.spec.num_items), np.float32)
            if num_negatives:
                rules.add_log_loss(ids, score_AV, num_negatives, seed)
            rules.add_scores(ids, score_AV)
    return rules.finish()


def fit_rows(num_items: int, *, at_most: int) -> int:
    """Rows of float32 scores over the corpus that are held at once, 1 to `at_most`."""
    return max(1, min(at_most, _SCORE_BYTES // (4 * num_items)))


def _apply(model: nn.Module, frozen: train_state.Frozen, *args: Any, method: str) -> Any:
    return model.apply(frozen.variables, *args, train=False, method=method)


def _make_zeros(
    spec: features.FeatureSpec, rows: int
) -> tuple[batch_lib.Users, Int[np.ndarray, "rows"]]:
    """So many users that are unknown, in the first scenario, with the types of those read."""
    users, _, scenario_B = train_state.example_inputs(spec)
    zeros: tuple[batch_lib.Users, np.ndarray] = jax.tree.map(
        lambda leaf: np.zeros((rows, *leaf.shape[1:]), leaf.dtype), (users, scenario_B)
    )
    return zeros


def _batches(
    split: str, query_Q: Int[np.ndarray, "Q"], batch_size: int
) -> Iterator[Int[np.ndarray, "B"]]:
    """Query ids in ascending order, under a progress bar."""
    query_Q = np.sort(query_Q)
    starts = range(0, len(query_Q), batch_size)
    with _progress(f"evaluate {split}", len(starts)) as bar:
        for start in starts:
            yield query_Q[start : start + batch_size]
            bar.update()


# Shown on a terminal only, and by one process.
def _progress(title: str, total: int) -> Any:
    return runlog.bar(total=total, desc=title, unit="batch", shown=jax.process_index() == 0)
