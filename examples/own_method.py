"""A method of one's own, outside the package: the least that a two-tower method can be.

dsmoe train --config examples/own_method.py:sample
python examples/own_method.py
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

import dsmoe_jax
from dsmoe_jax.config import load, schema
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import dropout, embed, scenario


@dataclasses.dataclass
class LinearConfig(schema.MatcherConfig):
    """Hyper-parameters: the vectors' width, and the rate at which inputs are dropped."""

    output_dim: int = 64
    input_dropout: float = 0.0

    def make(self, spec):
        """Builds the model; runs once, before training."""
        return Linear(spec=spec, output_dim=self.output_dim, input_dropout=self.input_dropout)


class Linear(two_tower.Matcher):
    """Linear maps of the concatenated features, the scenario among the user's.

    Items do not see it, so one index serves every scenario.
    """

    output_dim: int
    input_dropout: float
    item_uses_scenario = False

    def setup(self):
        """Creates the layers."""
        self.embedder = embed.Embedder(self.spec)
        self.drop = dropout.Dropout(self.input_dropout)
        self.user_layer = nn.Dense(self.output_dim)
        self.item_layer = nn.Dense(self.output_dim)

    def embed_user(self, users, scenario_B, *, train):
        """One vector, and no auxiliary loss."""
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        scenario_BC = scenario.pick(self.embedder.scenarios(), one_hot_BS)
        features = jnp.concatenate([self.embedder.users(users).input_BI, scenario_BC], axis=-1)
        features = self.drop(features, train=train)
        return self.user_layer(features)[:, None], {}

    def embed_item(self, items, scenario_B, *, train):
        """One vector, and no auxiliary loss."""
        features = self.drop(self.embedder.items(items).input_BI, train=train)
        return self.item_layer(features), {}


def get_config(variant: str = "") -> schema.Experiment:
    """KuaiRand-Pure as it is configured in the package, with the method above and no teacher."""
    experiment = load.load_experiment("kuairand", variant)
    experiment.model = LinearConfig(input_dropout=0.3)
    experiment.loss.distill_weight = 0.0
    return experiment


def main(workdir: str = "runs/own_method", variant: str = "sample", **fields) -> dsmoe_jax.Model:
    """Trains the method from Python."""
    experiment = dsmoe_jax.load_config(f"{__file__}:{variant}", **fields)
    model = dsmoe_jax.train(experiment, workdir, progress=True)
    print(f"macro recall@50 {model.results['macro']['recall@50']:.3f}")
    return model


if __name__ == "__main__":
    main()
