"""Folded towers: a bundle's arrays and manifest as user and item vectors, in NumPy alone.

Owns the arithmetic that every reader of a bundle has to do. A tower has one of two parts, or both,
whose outputs are joined. A perceptron may read a history that a causal encoder reads first, see
`histories.py`:

    linear       of a user [c_s [a, 1], 1] with a = linear_kind[s] + sum of the pooled sequences and
                 c_s = linear_scale[s] / sqrt([a, 1] linear_covariance [a, 1]); of an item
                 [linear_item, linear_bias, linear_log_prior[s]]
    perceptron   prelu(x @ <side>_first[s] + <side>_first_bias[s], <side>_slope) @ <side>_second[s]
                 + <side>_second_bias[s], where x joins the slots that the manifest lists

A sequence pools to sum_l w_l table[item_l] / sqrt(max(sum_l w_l^2 + extra, 1)) with the weights
w_l = max(recency^age, floor), the age of the last event being 0.

**Paper:** the folding follows from DSMOE's equations; FISM's are in `models/matching/fism.py`.

Letters: B users, N items, S scenarios, M interests (1), L history length, F features or hidden
units, E a slot's width, I a perceptron's input, D a vector, P ids in a padded bag.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import histories

# Kinds of slots that read a sequence.
_SEQUENCE_SLOTS = ("sequence", "encoded")


@runtime_checkable
class UserTower(Protocol):
    """Users and scenarios to vectors."""

    def __call__(
        self, users: batch_lib.Users, scenario_B: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B M D"]:
        """User vectors, one per interest."""
        ...


@runtime_checkable
class ItemTower(Protocol):
    """Items to vectors in one scenario."""

    def __call__(self, items: batch_lib.Items, scenario: int) -> Float[np.ndarray, "N D"]:
        """Item vectors."""
        ...


class Perceptron:
    """The part of a tower that has a hidden layer."""

    def __init__(self, bundle: bundle_lib.Bundle, side: str, slots: list[dict[str, Any]]):
        self._slots = [(slot, bundle.load(slot["table"])) for slot in slots]
        names = ("first", "first_bias", "slope", "second", "second_bias")
        loaded = [bundle.load(f"{side}_{name}") for name in names]
        self.first_SIF, self.first_bias_SF, self.slope_F, self.second_SFD, self.bias_SD = loaded

    def embed(
        self,
        sparse_BF: Int[np.ndarray, "B F"],
        dense_BF: Float[np.ndarray, "B _"],
        bags: dict[str, Int[np.ndarray, "B _"]],
        sequences: dict[str, batch_lib.Sequence],
        pooled: dict[str, Float[np.ndarray, "B E"]],
    ) -> Float[np.ndarray, "B I"]:
        """The input x: all slots side by side."""
        blocks = []
        for slot, table in self._slots:
            kind, name, column, row = (slot[k] for k in ("kind", "name", "column", "first_row"))
            if kind == "sparse":
                blocks.append(table[sparse_BF[:, column] + row])
            elif kind == "dense":
                blocks.append(dense_BF[:, column, None] * table[row][None])
            elif kind == "bag":
                ids_BP = bags[name]
                blocks.append(_mean(table[ids_BP + row], ids_BP > 0))
            elif kind == "sequence":
                ids_BLF = sequences[name].ids_BLF
                blocks.append(_mean(table[ids_BLF[..., column] + row], ids_BLF[..., 0] > 0))
            elif kind == "encoded":
                E = table.shape[1]
                blocks.append(pooled[name][:, column * E : (column + 1) * E])
            else:
                blocks.append(pooled[name])
        return np.concatenate(blocks, axis=1)

    def hide(self, input_BI: Float[np.ndarray, "B I"], scenario: int) -> Float[np.ndarray, "B F"]:
        """The hidden layer after its PReLU, in one scenario."""
        s = scenario if len(self.first_SIF) > 1 else 0
        hidden_BF = input_BI @ self.first_SIF[s] + self.first_bias_SF[s][None]
        return np.asarray(np.where(hidden_BF >= 0, hidden_BF, self.slope_F[None] * hidden_BF))

    def run(self, input_BI: Float[np.ndarray, "B I"], scenario: int) -> Float[np.ndarray, "B D"]:
        """Outputs in one scenario; in a tower that has one, whatever the scenario."""
        s = scenario if len(self.first_SIF) > 1 else 0
        return np.asarray(
            self.hide(input_BI, scenario) @ self.second_SFD[s] + self.bias_SD[s][None]
        )


class Linear:
    """The part of a tower that sums factors."""

    def __init__(self, bundle: bundle_lib.Bundle, form: dict[str, Any]):
        self.bags: list[dict[str, Any]] = form["bags"]
        # Of a score over the items, below which it is not divided any more.
        self._least_variance = np.float32(form["least_variance"])
        self.tables = {bag["sequence"]: bundle.load(bag["table"]) for bag in self.bags}
        self.kind_SD, self.scale_S = bundle.load("linear_kind"), bundle.load("linear_scale")
        self.covariance_DD = bundle.load("linear_covariance")
        self.item_VD, self.bias_V = bundle.load("linear_item"), bundle.load("linear_bias")
        self.log_prior_SV = bundle.load("linear_log_prior")

    def weigh(
        self, bag: dict[str, Any], ids_BL: Int[np.ndarray, "B L"]
    ) -> Float[np.ndarray, "B L"]:
        """What each event counts in the pooled sequence, its norm included; 0 at padding."""
        is_event_BL = ids_BL > 0
        age_BL = is_event_BL[:, ::-1].cumsum(axis=1)[:, ::-1] - 1
        recency = np.float32(bag["recency"]) ** age_BL.astype(np.float32)
        weight_BL = np.maximum(recency, np.float32(bag["floor"])) * is_event_BL
        norm_B = np.sqrt(np.maximum((weight_BL**2).sum(axis=1) + np.float32(bag["extra"]), 1.0))
        return np.asarray(weight_BL / norm_B[:, None], np.float32)

    def pool(self, sequences: dict[str, batch_lib.Sequence]) -> dict[str, np.ndarray]:
        """Every sequence pooled, [B, D], by its name."""
        pooled = {}
        for bag in self.bags:
            ids_BL = sequences[bag["sequence"]].ids_BLF[..., 0]
            weight_B1L = self.weigh(bag, ids_BL)[:, None]
            pooled[bag["sequence"]] = (weight_B1L @ self.tables[bag["sequence"]][ids_BL])[:, 0]
        return pooled

    def scale(
        self, taste_BD: Float[np.ndarray, "B D"], scenario_B: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B"]:
        """c_s of users whose [a, 1] is given."""
        variance_B = np.einsum("bd,bd->b", taste_BD @ self.covariance_DD, taste_BD)
        deviation_B = np.sqrt(np.maximum(variance_B, self._least_variance))
        return np.asarray(self.scale_S[scenario_B] / deviation_B)

    def taste(
        self, pooled: dict[str, np.ndarray], scenario_B: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B D"]:
        """[a, 1]."""
        taste_BD = sum(pooled.values(), start=self.kind_SD[scenario_B])
        return np.concatenate([taste_BD, np.ones_like(taste_BD[:, :1])], axis=1)

    def users(
        self, pooled: dict[str, np.ndarray], scenario_B: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B D"]:
        """User vectors."""
        taste_BD = self.taste(pooled, scenario_B)
        scaled_BD = taste_BD * self.scale(taste_BD, scenario_B)[:, None]
        return np.concatenate([scaled_BD, np.ones_like(taste_BD[:, :1])], axis=1)

    def items(self, id_N: Int[np.ndarray, "N"], scenario: int) -> Float[np.ndarray, "N D"]:
        """Item vectors; row 0 is an item that training did not meet."""
        last_N2 = np.stack([self.bias_V[id_N], self.log_prior_SV[scenario, id_N]], axis=1)
        return np.concatenate([self.item_VD[id_N], last_N2], axis=1)


class FoldedUserTower:
    """A user tower of plain arrays; implements `UserTower`."""

    def __init__(self, bundle: bundle_lib.Bundle):
        form = bundle.manifest["towers"]["user"]
        self.num_experts: int = bundle.manifest["towers"].get("num_experts", 0)
        self.linear = Linear(bundle, form["linear"]) if form["linear"] else None
        self.perceptron = Perceptron(bundle, "user", form["slots"]) if form["slots"] else None
        self.history = histories.Encoder(bundle, form["history"]) if "history" in form else None

    def __call__(
        self, users: batch_lib.Users, scenario_B: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B M D"]:
        """See `UserTower`."""
        parts, pooled = [], {}
        if self.linear:
            pooled = self.linear.pool(users.sequences)
            parts.append(self.linear.users(pooled, scenario_B))
        if self.history:
            pooled[features.HISTORY] = self.history(users.sequences[features.HISTORY], users.time_B)
        if self.perceptron:
            input_BI = self.perceptron.embed(
                users.sparse_BF, users.dense_BF, users.bags, users.sequences, pooled
            )
            output_BD = np.empty(
                (len(input_BI), self.perceptron.bias_SD.shape[1]), self.perceptron.bias_SD.dtype
            )
            for s in np.unique(scenario_B).tolist():
                chosen_B = scenario_B == s
                output_BD[chosen_B] = self.perceptron.run(input_BI[chosen_B], s)
            parts.append(output_BD)
        return np.concatenate(parts, axis=1)[:, None]


class FoldedItemTower:
    """An item tower of plain arrays; implements `ItemTower`."""

    def __init__(self, bundle: bundle_lib.Bundle):
        towers = bundle.manifest["towers"]
        form, linear = towers["item"], towers["user"]["linear"]
        self._linear = Linear(bundle, linear) if linear else None
        self._perceptron = Perceptron(bundle, "item", form["slots"]) if form["slots"] else None

    def __call__(self, items: batch_lib.Items, scenario: int) -> Float[np.ndarray, "N D"]:
        """See `ItemTower`."""
        parts = []
        if self._linear:
            parts.append(self._linear.items(items.sparse_VF[:, 0], scenario))
        if self._perceptron:
            input_NI = self._perceptron.embed(items.sparse_VF, items.dense_VF, items.bags, {}, {})
            parts.append(self._perceptron.run(input_NI, scenario))
        return np.concatenate(parts, axis=1)


def make_towers(bundle: bundle_lib.Bundle) -> tuple[UserTower, ItemTower]:
    """The towers of a bundle.

    Raises:
      ValueError: When they are programs that this JAX cannot read.
    """
    if bundle.manifest["towers"]["kind"] == "arrays":
        return FoldedUserTower(bundle), FoldedItemTower(bundle)
    # Brings the library of models with it, which folded towers do without.
    from dsmoe_jax.serving import compiled

    return compiled.CompiledUserTower(bundle), compiled.CompiledItemTower(bundle)


def read_spec(bundle: bundle_lib.Bundle) -> features.FeatureSpec:
    """The features that the user tower reads, of those that the model had in training."""
    form, spec = bundle.manifest["towers"], bundle.spec
    if form["kind"] != "arrays":
        return spec
    read = {slot["name"] for slot in form["user"]["slots"] if slot["kind"] in _SEQUENCE_SLOTS}
    read |= {bag["sequence"] for bag in (form["user"]["linear"] or {"bags": []})["bags"]}
    return dataclasses.replace(
        spec, sequences=tuple(sequence for sequence in spec.sequences if sequence.name in read)
    )


def read_items(bundle: bundle_lib.Bundle, items: batch_lib.Items | None = None) -> batch_lib.Items:
    """Items with the features that the model reads; all of a bundle by default, row = item id."""
    spec, raw_spec = bundle.spec, bundle.raw_spec
    if items is None:
        bags = {bag.name: bundle.load(f"items_bag_{bag.name}") for bag in spec.item_bags}
        items = batch_lib.Items(bundle.load("items_sparse"), bundle.load("items_dense"), bags)

    def columns(kind: str) -> list[int]:
        names = [feature.name for feature in getattr(raw_spec, f"item_{kind}")]
        return [names.index(feature.name) for feature in getattr(spec, f"item_{kind}")]

    return batch_lib.Items(
        items.sparse_VF[:, columns("sparse")],
        items.dense_VF[:, columns("dense")],
        {bag.name: items.bags[bag.name] for bag in spec.item_bags},
    )


def _mean(value_BLE: Float[np.ndarray, "B L E"], mask_BL: Any) -> Float[np.ndarray, "B E"]:
    """Mean over the positions in the mask; 0 where there is none."""
    count_B1 = np.maximum(mask_BL.sum(axis=1, keepdims=True), 1).astype(value_BLE.dtype)
    return np.asarray((value_BLE * mask_BL[..., None]).sum(axis=1) / count_B1)
