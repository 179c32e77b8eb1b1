"""Symmetric two-tower base class: towers of one architecture that both see the scenario.

Owns how a user and an item become a tower's input and its output theirs; a method's file makes the
towers.

Letters: B examples, M interests (1), I a tower's input, D output.
"""

import flax.linen as nn
import jax
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import scenario


class SymmetricMatcher(two_tower.Matcher):
    """Both towers read their side's concatenated features; there is one index per scenario.

    A method's `setup` creates what is used here: `embedder` (`nn.embed.Embedder`), `drop`, the
    dropout of both towers' inputs, `user_tower` and `item_tower`.
    """

    item_uses_scenario = True

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        input_BI = self.embedder.users(users).input_BI
        return self.run(self.user_tower, input_BI, scenario_B, train)[:, None], {}

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        input_BI = self.embedder.items(items).input_BI
        return self.run(self.item_tower, input_BI, scenario_B, train), {}

    def run(
        self,
        tower: nn.Module,
        input_BI: Float[jax.Array, "B ... I"],
        scenario_B: Int[jax.Array, "B"],
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        """A tower's output; a method whose towers take other arguments has a `run` of its own."""
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        input_BI = self.drop(input_BI, train=train)
        output: jax.Array = tower(input_BI, self.embedder.scenarios(), one_hot_BS, train=train)
        return output
