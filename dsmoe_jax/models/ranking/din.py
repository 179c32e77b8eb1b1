"""DIN: a perceptron on the attended history and all other features.

Owns the perceptron and its activation; attention and the joint input are `joint_ranker.py`'s.

Letters: B examples, G candidates, S scenarios, O outputs of a layer.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.ranking import joint_ranker
from dsmoe_jax.nn import dropout as dropout_lib
from dsmoe_jax.nn import dsbn, mlp

ACTIVATIONS = ("dice", "prelu")
# PyTorch's for PReLU; Dice starts as a smooth ReLU, as in its authors' code.
_SLOPES = {"dice": 0.0, "prelu": 0.25}


@dataclasses.dataclass
class DINConfig(joint_ranker.JointRankerConfig):
    """Hyper-parameters of DIN.

    Attributes:
      hidden_dims: Widths of the hidden layers.
      activation: "dice", whose switch reads the layer's output normalised by `norm`, or "prelu"
        of the normalised output.
    """

    norm: str = "bn"
    hidden_dims: tuple[int, ...] = fields.widths((200, 80), search=((64, 32), (200, 80)))
    activation: str = fields.field("dice", choices=ACTIVATIONS, search=ACTIVATIONS)

    def make(self, spec: features.FeatureSpec) -> "DIN":
        return self.build(DIN, spec)


class DIN(joint_ranker.JointRanker):
    """logit = MLP(x), where x holds the history that the candidate attended to.

    The scenario is a feature like any other, unless `norm` is "dsbn".

    **Paper:** Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", section 4.3
    and, for Dice, 5.3.
    **Deviation:** the attention unit's, see `nn/attention.py`; the products of the input, which all
    our rankers have.
    """

    cfg: DINConfig

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        self.first = mlp.Split(self.part_widths, cfg.hidden_dims[0])
        self.layers = [nn.Dense(width) for width in (*cfg.hidden_dims[1:], 1)]
        S, momentum = self.spec.num_scenarios, cfg.bn_momentum
        self.activations = [
            Activation(cfg.activation, cfg.norm, S, width, momentum) for width in cfg.hidden_dims
        ]
        self.drops = [dropout_lib.Dropout(cfg.dropout) for _ in cfg.hidden_dims]

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        hidden = first_BGO
        for activate, drop, layer in zip(self.activations, self.drops, self.layers, strict=True):
            hidden = layer(drop(activate(hidden, one_hot_BS, train=train), train=train))
        return hidden[..., 0]


class Activation(nn.Module):
    """Dice, p x + (1 - p) a x with p = sigmoid(norm(x)), or PReLU of norm(x), a learned per unit.

    **Deviation:** Dice's normalisation has a learned gain and shift.
    """

    kind: str  # One of `ACTIVATIONS`
    norm: str  # One of `dsbn.KINDS`
    num_scenarios: int  # S
    num_features: int  # O
    momentum: float  # Of the running statistics

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> Float[jax.Array, "B G O"]:
        norm = dsbn.ScenarioNorm(
            self.norm, self.num_scenarios, self.num_features, self.momentum, name="norm"
        )
        normal = norm(x, one_hot_BS, train=train)
        init = nn.initializers.constant(_SLOPES[self.kind])
        slope = self.param("slope", init, (self.num_features,), jnp.float32)[None, None]
        if self.kind == "prelu":
            return jnp.where(normal >= 0, normal, slope * normal)
        share = nn.sigmoid(normal)
        return x * (share + (1 - share) * slope)
