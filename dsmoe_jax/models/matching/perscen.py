"""PERSCEN-style: graphs over the fields of a user or an item, gated by a quantised preference.

Owns the codebook, its losses and what is remembered of its use (collection `codes`), and the two
towers. The graph is in `models/matching/perscen_graph.py`.

Letters: B examples, S scenarios, C scenario embedding, N codes, H hidden width, D output, I a
tower's input, M interests (1) or the codebook's remembered vectors.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import perscen_graph, two_tower
from dsmoe_jax.nn import dropout, dsbn, embed, mlp, scenario

# The first of these that the features hold is the history that tells a user's preference.
PREFERENCE_HISTORIES = ("scenario_history", "history")

# Of every batch so many vectors are remembered that a full memory spans the last eight.
_BATCHES = 8


@dataclasses.dataclass
class PERSCENConfig(two_tower.TowerConfig):
    """Hyper-parameters of PERSCEN; no value of the paper's could be read.

    Attributes:
      hidden_dim: H, width of every layer between the graph and the output.
      num_layers: Graph layers of each tower, which has one gated linear unit more.
      num_codes: Codes of the preference codebook.
      commitment: beta >= 0 of the quantiser's loss.
      vq_weight: Weight >= 0 of the quantiser's loss in the objective.
      norm: Normalisation of the perceptrons' hidden layers and of what is read from the graph:
        "bn", "dsbn" (per scenario) or "none".
    """

    hidden_dim: int = fields.field(256, at_least=1, search=(64, 128, 256))
    num_layers: int = fields.field(2, at_least=1)
    num_codes: int = fields.field(64, at_least=1, search=(16, 64))
    commitment: float = fields.field(0.25, at_least=0)
    vq_weight: float = fields.field(1.0, at_least=0)
    norm: str = "bn"

    def make(self, spec: features.FeatureSpec) -> "PERSCEN":
        return self.build(PERSCEN, spec)

    def check(self, spec: features.FeatureSpec) -> None:
        if not spec.sequences:
            raise ValueError("model: PERSCEN expected features with at least one history, got none")


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantisation with a straight-through gradient.

    In training it counts how often each code was the nearest, and remembers some of the vectors
    that came last: the first rows of each batch, whose order is random anyway.

    **Paper:** van den Oord et al., "Neural Discrete Representation Learning", section 3; the
    codebook is learned by its loss, not by moving averages.
    **Deviation:** unused codes are re-seeded, see `reseed`.
    """

    num_codes: int  # N
    dim: int  # H
    commitment: float  # beta >= 0, the weight of the loss that draws vectors to their codes

    def setup(self) -> None:
        shape_NH = (self.num_codes, self.dim)
        init = nn.initializers.normal(self.dim**-0.5)
        self.codebook_NH = self.param("codebook", init, shape_NH, jnp.float32)
        self.count_N = self.variable("codes", "count", jnp.zeros, (self.num_codes,), jnp.int32)
        self.recent_MH = self.variable("codes", "recent", jnp.zeros, shape_NH, jnp.float32)
        self.num_recent = self.variable("codes", "num_recent", jnp.zeros, (), jnp.int32)

    def __call__(
        self, z_BH: Float[jax.Array, "B H"], *, train: bool
    ) -> tuple[Float[jax.Array, "B H"], Float[jax.Array, "B"]]:
        """Every vector's nearest code q, of equally near ones the first, and the loss.

        The value is q and its gradient that of z itself. The loss is |sg(z) - q|^2 + beta
        |z - sg(q)|^2, the first term being all that moves the codebook.
        """
        one_hot_BN = self._choose(z_BH)
        code_BH = jnp.matmul(one_hot_BN, self.codebook_NH, precision=scenario.EXACT)
        still = jax.lax.stop_gradient
        loss_B = jnp.square(still(z_BH) - code_BH).sum(axis=1)
        loss_B = loss_B + self.commitment * jnp.square(z_BH - still(code_BH)).sum(axis=1)
        if train and not self.is_initializing():
            self._record(still(z_BH), one_hot_BN)
        return z_BH + still(code_BH - z_BH), loss_B

    def perplexity(self) -> Float[jax.Array, ""]:
        """Codes in use since the last `reseed`: exp of the entropy of their shares, 1 to N."""
        count_N = self.count_N.value.astype(jnp.float32)
        share_N = count_N / jnp.maximum(count_N.sum(), 1)
        return jnp.exp(-jax.scipy.special.xlogy(share_N, share_N).sum())

    def reseed(self, key: jax.Array) -> None:
        """Puts remembered vectors in the place of codes never used since the last call.

        Which goes where is drawn with the key, none twice. A code in use stays as it is; so does
        an unused one when there are more of them than vectors. The counts start anew.
        """
        unused_N = self.count_N.value == 0
        held = self.num_recent.value
        draw_M = jax.random.uniform(key, (self.num_codes,))
        order_M = jnp.argsort(jnp.where(jnp.arange(self.num_codes) < held, draw_M, 2.0))
        turn_N = jnp.cumsum(unused_N) - 1
        found_NH = self.recent_MH.value[order_M[jnp.maximum(turn_N, 0)]]
        replaced_N1 = (unused_N & (turn_N < held))[:, None]
        self.put_variable("params", "codebook", jnp.where(replaced_N1, found_NH, self.codebook_NH))
        self.count_N.value = jnp.zeros_like(self.count_N.value)

    def _choose(self, z_BH: Float[jax.Array, "B H"]) -> Float[jax.Array, "B N"]:
        """One-hot rows of the nearest codes."""
        inner_BN = jnp.matmul(z_BH, self.codebook_NH.T, precision=scenario.EXACT)
        distance_BN = jnp.square(self.codebook_NH).sum(axis=1)[None] - 2 * inner_BN
        nearest_B = jnp.argmin(distance_BN, axis=1)
        return jax.nn.one_hot(nearest_B, self.num_codes, dtype=jnp.float32)

    def _record(self, z_BH: Float[jax.Array, "B H"], one_hot_BN: Float[jax.Array, "B N"]) -> None:
        used_N: Int[jax.Array, "N"] = one_hot_BN.sum(axis=0).astype(jnp.int32)
        self.count_N.value = self.count_N.value + used_N
        rows = z_BH[: max(1, self.num_codes // _BATCHES)]
        joint_MH = jnp.concatenate([rows, self.recent_MH.value])
        self.recent_MH.value = joint_MH[: self.num_codes]
        self.num_recent.value = jnp.minimum(self.num_recent.value + len(rows), self.num_codes)


class GraphTower(nn.Module):
    """Reads the fields, then their graph layer by layer, each gated by what was read before.

    g^l = norm(vec(H^l) P^l) for l = 0 .. L, H^0 being the fields themselves; t^l = (g^l Wa^l) *
    sigmoid(t^(l-1) Wb^l), where a seed takes the place of t^(-1); the output is
    (alpha sum_l g^l + (1 - alpha) sum_l t^l) Wo, alpha = sigmoid(a learned scalar, initially 0).

    **Paper:** PERSCEN, progressive scenario-aware gated linear unit and learnable fusion.
    **Deviation:** the unit's equation, the normalisation and what is fused are inferred. Summaries
    read as if the last layer alone were: products of L + 1 fields. So built, validation recall on
    the packaged rows stayed near that of popularity; all orders, from the first, learn.
    """

    in_dim: int  # I
    spec: features.FeatureSpec  # The features
    cfg: PERSCENConfig  # See `PERSCENConfig`

    def setup(self) -> None:
        cfg, S, E = self.cfg, self.spec.num_scenarios, self.spec.embedding_dim
        layers, H = range(cfg.num_layers + 1), cfg.hidden_dim
        self.graph = perscen_graph.FeatureGraph(self.in_dim // E, E, cfg.num_layers)
        self.read = [nn.Dense(H, use_bias=False) for _ in layers]
        self.norms = [dsbn.ScenarioNorm(cfg.norm, S, H, cfg.bn_momentum) for _ in layers]
        self.value = [nn.Dense(H, use_bias=False) for _ in layers]
        self.gate = [nn.Dense(H, use_bias=False) for _ in layers]
        self.fusion = self.param("fusion", nn.initializers.zeros_init(), (1,), jnp.float32)
        self.out = nn.Dense(cfg.output_dim, use_bias=False)

    def seed(self, seed: Float[jax.Array, "*rows H"]) -> Float[jax.Array, "*rows H"]:
        """The first gate's product t^(-1) Wb^0, which may be of fewer rows than the input's."""
        return self.gate[0](seed)

    def __call__(
        self,
        x: Float[jax.Array, "B ... I"],
        first_gate: Float[jax.Array, "B ... H"],
        one_hot_BS: Float[jax.Array, "B S"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        """Runs the tower; `first_gate`, from `seed`, has as many axes as `x` or broadcasts."""
        gate, reads, gated = first_gate, [], []
        for layer, product in enumerate([x, *self.graph(x)]):
            reads.append(self.norms[layer](self.read[layer](product), one_hot_BS, train=train))
            gated.append(self.value[layer](reads[-1]) * nn.sigmoid(gate))
            if layer < self.cfg.num_layers:
                gate = self.gate[layer + 1](gated[-1])
        share = nn.sigmoid(self.fusion).reshape((1,) * x.ndim)
        return self.out(share * sum(reads) + (1 - share) * sum(gated))


class PERSCEN(two_tower.Matcher):
    """Two towers on feature graphs; the user's is gated by the preference in the scenario.

    Every block of E entries of a tower's input is a field of its graph: pooled histories are
    fields, and a history of several item fields is several. The preference is z = MLP(pooled
    history of the scenario), quantised: p = z + q with q the nearest code, whose gradient is that
    of z. With p_s = MLP(e_s) it becomes the seed MLP([p; p_s]) of the user tower's gates. An item
    has no history: the seed of its tower's gates is p_s.

    Where the run leaves the scenario's history out, as where a user lives in one scenario, the
    preference is read from the history of all, and where that is out too from the first sequence.
    An empty history pools to 0, and the preference then is MLP(0).

    **Paper:** Du et al., "PERSCEN: Learning Personalized Interaction Pattern and Scenario
    Preference for Multi-Scenario Matching" (KDD 2025, arXiv 2506.18382), of which summaries were
    read and not the text: feature graph and its refinement, graph network, codebook, gated linear
    units, fusion, and the loss L_task + L_VQ.
    **Deviation:** "PERSCEN-style". Inferred: the equations of the gated units and of the fusion,
    depths and widths of perceptrons, all normalisation, the scenario encoder's being one for both
    towers, the item tower's seed and every hyper-parameter. The graph's details are EmerG's
    (`models/matching/perscen_graph.py`). Codes that an epoch left unused are re-seeded, which the
    summaries do not mention.
    """

    has_end_epoch = True
    item_uses_scenario = True  # it opens the item tower's gates

    cfg: PERSCENConfig

    def setup(self) -> None:
        cfg = self.cfg
        H = cfg.hidden_dim
        self.embedder = embed.Embedder(self.spec)
        self.drop = dropout.Dropout(cfg.input_dropout)
        self.user_tower = GraphTower(self.embedder.user_dim, self.spec, self.cfg)
        self.item_tower = GraphTower(self.embedder.item_dim, self.spec, self.cfg)
        self.scenario_hidden, self.scenario_out = nn.Dense(H), nn.Dense(H)
        self.preference_hidden, self.preference_out = nn.Dense(H), nn.Dense(H)
        self.preference_block = cfg.make_block(self.spec.num_scenarios, H)
        self.codes = VectorQuantizer(cfg.num_codes, H, cfg.commitment)
        self.seed_hidden, self.seed_out = mlp.Split((H, H), H), nn.Dense(H)
        self.seed_block = cfg.make_block(self.spec.num_scenarios, H)

    @property
    def preference_history(self) -> str:
        """Name of the sequence that the preference is read from."""
        names = [sequence.name for sequence in self.spec.sequences]
        return next((name for name in PREFERENCE_HISTORIES if name in names), names[0])

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        """One vector per user; in training the weighted loss "vq", a mean over users."""
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        embedded = self.embedder.users(users)
        pooled_BI = self.drop(embedded.pooled[self.preference_history], train=train)
        hidden_BH = self.preference_hidden(pooled_BI)
        z_BH = self.preference_out(self.preference_block(hidden_BH, one_hot_BS, train=train))
        code_BH, loss_B = self.codes(z_BH, train=train)
        # The scenario's part of the seed's first layer is taken once per scenario.
        of_scenario_SH = self.seed_hidden(1, self._encode_scenarios())
        hidden_BH = self.seed_hidden(0, z_BH + code_BH) + scenario.pick(of_scenario_SH, one_hot_BS)
        seed_BH = self.seed_out(self.seed_block(hidden_BH, one_hot_BS, train=train))
        input_BI = self.drop(embedded.input_BI, train=train)
        user_BD = self.user_tower(input_BI, self.user_tower.seed(seed_BH), one_hot_BS, train=train)
        aux = {"vq": self.cfg.vq_weight * loss_B.mean()} if train else {}
        return user_BD[:, None], aux

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        x = self.drop(self.embedder.items(items).input_BI, train=train)
        gate_SH = self.item_tower.seed(self._encode_scenarios())
        gate = scenario.pick(gate_SH, one_hot_BS, x.ndim)
        return self.item_tower(x, gate, one_hot_BS, train=train), {}

    def end_epoch(self) -> two_tower.Aux:
        """Re-seeds the codes that no example of the epoch came nearest to.

        Returns:
          `code_perplexity`, the effective number of codes that were in use, 1 to `num_codes`.
        """
        perplexity = self.codes.perplexity()
        self.codes.reseed(self.make_rng("dropout"))
        return {"code_perplexity": perplexity}

    def _encode_scenarios(self) -> Float[jax.Array, "S H"]:
        """p_s of every scenario."""
        return self.scenario_out(nn.relu(self.scenario_hidden(self.embedder.scenarios())))
