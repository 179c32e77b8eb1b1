"""STAR: one network whose weights are shared ones times the scenario's own.

Owns the normalised star network and the auxiliary one; the layers are `nn/star_topology.py`'s, the
joint input is `joint_ranker.py`'s.

Letters: B examples, G candidates, S scenarios, E one field's embedding, I a part's width,
O outputs of the first layers.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.ranking import joint_ranker
from dsmoe_jax.nn import mlp, star_topology


@dataclasses.dataclass
class STARConfig(joint_ranker.JointRankerConfig):
    """Hyper-parameters of STAR, which has no normalisation of hidden layers itself (`norm`).

    Attributes:
      hidden_dims: Widths of the star network's hidden layers.
      aux_dims: Widths of the auxiliary network's hidden layers.
      partitioned_norm: Whether the star network's input is normalised per scenario.
    """

    norm: str = "none"
    hidden_dims: tuple[int, ...] = fields.widths((128, 64, 32), search=((64, 32), (128, 64, 32)))
    aux_dims: tuple[int, ...] = fields.widths((32,))
    partitioned_norm: bool = fields.field(True, search=(True, False))

    def make(self, spec: features.FeatureSpec) -> "STAR":
        return self.build(STAR, spec)


class STAR(joint_ranker.JointRanker):
    """logit = star(partitioned_norm(x)) + auxiliary([x; e_s]).

    Normalisation is by column, so each part of the input has its own: statistics of a user's
    columns are over the examples, which is what they are over all pairs since each user has as many
    candidates, those of an item's and a pair's columns over pairs. Gains and shifts fold into the
    first star layer, so that the item's part is still multiplied once per item and scenario.

    **Paper:** Sheng et al., "One Model to Serve All: Star Topology Adaptive Recommender for
    Multi-Domain CTR Prediction", sections 3.3 to 3.5.
    **Deviation:** the scenario's embedding is an input of the auxiliary network alone: within a
    scenario it is constant, which normalisation turns into 0 in training and into noise where
    running statistics lag behind. Dropout of the input comes after its moments are taken.
    """

    cfg: STARConfig

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        S, E = self.spec.num_scenarios, self.spec.embedding_dim
        user, item, pair = self.part_widths
        widths = (user - E, item, pair)
        if cfg.partitioned_norm:
            self.input_norms = [
                star_topology.PartitionedNorm(S, width, cfg.bn_momentum) for width in widths
            ]
        self.first = star_topology.StarLinear(S, widths, cfg.hidden_dims[0])
        self.aux_first = mlp.Split(self.part_widths, cfg.aux_dims[0])
        dims = (*cfg.hidden_dims, 1)
        self.layers = [star_topology.StarLinear(S, (i,), o) for i, o in itertools.pairwise(dims)]
        self.blocks = [self._make_block(width) for width in cfg.hidden_dims]
        self.aux = mlp.ReluStack(1, (*cfg.aux_dims, 1))

    def _project(
        self,
        index: int,
        part: Float[jax.Array, "_ ... I"],
        one_hot_BS: Float[jax.Array, "B S"],
        train: bool,
    ) -> Float[jax.Array, "B ... O"]:
        """First products of the star network and of the auxiliary one, side by side."""
        affine = None
        if self.cfg.partitioned_norm:
            own = self._without_scenario(index, part)
            affine = self.input_norms[index](own, one_hot_BS, train=train)
        part = self.drop(part, train=train)
        star = self.first(self._without_scenario(index, part), one_hot_BS, index, affine)
        aux = self.aux_first(index, part)
        aux = jnp.broadcast_to(aux, (*star.shape[:-1], aux.shape[-1]))
        return jnp.concatenate([star, aux], axis=-1)

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        hidden, aux = jnp.split(first_BGO, [self.cfg.hidden_dims[0]], axis=-1)
        for block, layer in zip(self.blocks, self.layers, strict=True):
            hidden = layer(block(hidden, one_hot_BS, train=train), one_hot_BS)
        return (hidden + self.aux(aux))[..., 0]

    def _without_scenario(
        self, index: int, part: Float[jax.Array, "_ ... I"]
    ) -> Float[jax.Array, "_ ... I2"]:
        """A part without the scenario's embedding, which the user's part holds."""
        if index:
            return part
        start = self.embedder.user_dim
        stop = start + self.spec.embedding_dim
        return jnp.concatenate([part[..., :start], part[..., stop:]], axis=-1)
