"""PyTorch twins of the student and the teacher, to be timed against.

Owns nothing that the product runs. Written as one who knows PyTorch would: one product for all
experts, per-scenario tables picked by index, a fused table for the small fields, `embedding_bag`
for the histories, the user encoded once for all its candidates. Given the same weights it is equal
to ours in loss and gradients, which `bench.step` checks before it times anything.

Weights are named as ours, joined by dots: `user_tower.experts.shared`.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.nn import dsbn, tables

Weights = dict[str, torch.Tensor]


def from_tree(tree: Any, *, gradient: bool) -> Weights:
    """Nested arrays as tensors under dotted names."""
    found: Weights = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            inner = from_tree(value, gradient=gradient)
            found.update({f"{name}.{key}": leaf for key, leaf in inner.items()})
        else:
            found[name] = torch.tensor(np.asarray(value)).requires_grad_(gradient)
    return found


def to_torch(tree: Any) -> Any:
    """The arrays of a batch as tensors; ids become int64, which PyTorch looks up fastest."""
    if isinstance(tree, dict):
        return {name: to_torch(leaf) for name, leaf in tree.items()}
    if isinstance(tree, tuple):
        return type(tree)(*(to_torch(leaf) for leaf in tree))
    if tree is None:  # what a batch may have and has not
        return None
    array = torch.tensor(np.asarray(tree))
    return array.long() if not array.is_floating_point() else array


class Embedder:
    """The features of both sides."""

    def __init__(self, spec: features.FeatureSpec, weights: Weights, *, sparse: bool) -> None:
        """`sparse` gives the large tables sparse gradients."""
        self.spec, self.weights, self.sparse = spec, weights, sparse
        in_sequences = {name for s in spec.sequences for name in s.fields}
        self.own = {"user": {"user_id"}, "item": {"item_id", *in_sequences}}
        self.offsets, self.known = {}, {}
        for side in ("user", "item"):
            small = [f for f in self._features(side) if not self._has_own_table(side, f)]
            sizes = [f.num_ids for f in small]
            starts = np.cumsum([0, *sizes])
            self.offsets[side] = {f.name: int(s) for f, s in zip(small, starts[:-1], strict=True)}
            known = np.ones((int(starts[-1]), 1), np.float32)
            known[starts[:-1]] = 0
            self.known[side] = torch.tensor(known)

    def _features(self, side: str) -> list[Any]:
        return [*getattr(self.spec, f"{side}_sparse"), *getattr(self.spec, f"{side}_bags")]

    def _has_own_table(self, side: str, feature: Any) -> bool:
        return feature.num_ids >= tables.LARGE_TABLE_IDS or feature.name in self.own[side]

    def _table(self, side: str, name: str) -> torch.Tensor:
        return self.weights[f"embedder.{side}_tables.{name}"]

    def _look_up(self, side: str, name: str, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self._table(side, name), padding_idx=0, sparse=self.sparse)

    def embed(
        self,
        side: str,
        sparse_BF: torch.Tensor,
        dense_BF: torch.Tensor,
        bags: dict[str, torch.Tensor],
        sequences: dict[str, batch_lib.Sequence],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """A side's input, its fields with tables of their own, its pooled histories."""
        offsets = self.offsets[side]
        if offsets:
            small_table = self._table(side, tables.SMALL_FIELDS) * self.known[side]
        own, rows, pooled, small_bags = {}, [], [], []
        for column, feature in enumerate(getattr(self.spec, f"{side}_sparse")):
            ids = sparse_BF[..., column]
            if feature.name in offsets:
                rows.append(ids + offsets[feature.name])
            else:
                own[feature.name] = self._look_up(side, feature.name, ids)
        for bag in getattr(self.spec, f"{side}_bags"):
            ids = bags[bag.name]
            count = (ids > 0).sum(-1, keepdim=True).clamp(min=1)
            if bag.name in offsets:
                vectors = F.embedding(ids + offsets[bag.name], small_table)
                small_bags.append(vectors.sum(-2) / count)
            else:
                pooled.append(self._look_up(side, bag.name, ids).sum(-2) / count)
        blocks = []
        if rows:
            blocks.append(F.embedding(torch.stack(rows, -1), small_table).flatten(-2))
        blocks += [*own.values(), *pooled, *small_bags]
        if getattr(self.spec, f"{side}_dense"):
            vectors = self.weights[f"embedder.{side}_dense"]
            blocks.append((dense_BF[..., None] * vectors).flatten(-2))
        histories = {}
        for name, sequence in sequences.items():
            histories[name] = F.embedding_bag(
                sequence.ids_BLF[..., 0],
                self._table("item", "item_id"),
                mode="mean",
                padding_idx=0,
                sparse=self.sparse,
            )
        return torch.cat([*blocks, *histories.values()], -1), own, histories


def normalise(
    weights: Weights,
    statistics: Weights,
    name: str,
    x: torch.Tensor,
    scenario: torch.Tensor,
    one_hot_BS: torch.Tensor | None,
) -> torch.Tensor:
    """DSBN over the rows of `x`; with `one_hot_BS` in training, else with the running values."""
    scale_SF, bias_SF = weights[f"{name}.scale"], weights[f"{name}.bias"]
    mean_SF, var_SF = statistics[f"{name}.mean"], statistics[f"{name}.var"]
    if one_hot_BS is not None:
        count_S1 = one_hot_BS.sum(0)[:, None]
        enough_S1 = count_S1 >= 2
        divisor_S1 = count_S1.clamp(min=1)
        batch_mean_SF = torch.where(enough_S1, one_hot_BS.T @ x / divisor_S1, mean_SF)
        centred = x - batch_mean_SF[scenario]
        variance_SF = one_hot_BS.T @ centred.square() / divisor_S1
        batch_var_SF = torch.where(enough_S1, variance_SF, var_SF)
        with torch.no_grad():
            unbiased_SF = variance_SF * count_S1 / (count_S1 - 1).clamp(min=1)
            mean_SF.copy_(torch.where(enough_S1, 0.9 * mean_SF + 0.1 * batch_mean_SF, mean_SF))
            var_SF.copy_(torch.where(enough_S1, 0.9 * var_SF + 0.1 * unbiased_SF, var_SF))
        gain_SF = scale_SF * torch.rsqrt(batch_var_SF + dsbn.EPSILON)
        return centred * gain_SF[scenario] + bias_SF[scenario]
    gain_SF = scale_SF * torch.rsqrt(var_SF + dsbn.EPSILON)
    return x * gain_SF[scenario] + (bias_SF - mean_SF * gain_SF)[scenario]


class Student:
    """DSMOE with conditioned item tower and DSBN, in training."""

    def __init__(
        self,
        spec: features.FeatureSpec,
        weights: Weights,
        statistics: Weights,
        *,
        sparse: bool = False,
    ) -> None:
        """Holds the weights; `sparse` is for `torch.optim.SparseAdam`."""
        self.weights, self.statistics = weights, statistics
        self.num_scenarios = spec.num_scenarios
        self.embedder = Embedder(spec, weights, sparse=sparse)

    def logits(
        self, users: batch_lib.Users, items: batch_lib.Items, scenario_B: torch.Tensor
    ) -> torch.Tensor:
        """Logits [B, G]."""
        B, G = items.sparse_VF.shape[:2]
        user_BI, _, _ = self.embedder.embed(
            "user", users.sparse_BF, users.dense_BF, users.bags, users.sequences
        )
        item_BGI, _, _ = self.embedder.embed(
            "item", items.sparse_VF, items.dense_VF, items.bags, {}
        )
        user_BD = self._tower("user_tower", user_BI, scenario_B)
        item_ND = self._tower(
            "item_tower", item_BGI.reshape(B * G, -1), scenario_B.repeat_interleave(G)
        )
        return torch.bmm(item_ND.view(B, G, -1), user_BD[:, :, None])[..., 0]

    def _tower(self, tower: str, x: torch.Tensor, scenario: torch.Tensor) -> torch.Tensor:
        weights = self.weights
        one_hot = F.one_hot(scenario, self.num_scenarios).to(x.dtype)
        hidden = self._sap(f"{tower}.experts", x, scenario)
        K = weights[f"{tower}.prelu_slope"].shape[0]
        H = hidden.shape[1] // K
        hidden = F.prelu(hidden, weights[f"{tower}.prelu_slope"].repeat_interleave(H))
        hidden = normalise(weights, self.statistics, f"{tower}.norms", hidden, scenario, one_hot)
        scenario_SC = weights["embedder.scenario_table"]
        gate_SK = torch.softmax(
            scenario_SC @ weights[f"{tower}.gate_kernel"] + weights[f"{tower}.gate_bias"], -1
        )
        mixed = (hidden.view(-1, K, H) * gate_SK[scenario][..., None]).sum(1)
        return self._sap(f"{tower}.forward", mixed, scenario)

    def _sap(self, layer: str, x: torch.Tensor, scenario: torch.Tensor) -> torch.Tensor:
        weights = self.weights
        up_KRO = weights[f"{layer}.up"]
        K, R, outputs = up_KRO.shape
        scenario_SC = weights["embedder.scenario_table"]
        coef_SR = scenario_SC @ weights[f"{layer}.coef_kernel"] + weights[f"{layer}.coef_bias"]
        down = (x @ weights[f"{layer}.down"]) * coef_SR[scenario]
        up = torch.block_diag(*up_KRO.unbind()) if K > 1 else up_KRO.reshape(K * R, outputs)
        plain = torch.addmm(weights[f"{layer}.bias"], x, weights[f"{layer}.shared"])
        return torch.addmm(plain, down, up)


class Teacher:
    """MMOE-DIN without collaborative inputs, at inference."""

    def __init__(
        self, spec: features.FeatureSpec, weights: Weights, statistics: Weights, *, num_experts: int
    ) -> None:
        """Holds the weights."""
        self.spec, self.weights, self.statistics = spec, weights, statistics
        self.num_experts = num_experts
        self.embedder = Embedder(spec, weights, sparse=False)

    def logits(
        self, users: batch_lib.Users, items: batch_lib.Items, scenario_B: torch.Tensor
    ) -> torch.Tensor:
        """Logits [B, G]."""
        with torch.no_grad():
            weights, K = self.weights, self.num_experts
            B, G = items.sparse_VF.shape[:2]
            user_BI, user_fields, pooled = self.embedder.embed(
                "user", users.sparse_BF, users.dense_BF, users.bags, users.sequences
            )
            item_BGI, item_fields, _ = self.embedder.embed(
                "item", items.sparse_VF, items.dense_VF, items.bags, {}
            )
            candidate_BGE = item_fields["item_id"]
            user_BI = torch.cat([user_BI, weights["embedder.scenario_table"][scenario_B]], -1)
            pairs = []
            for sequence in self.spec.sequences:
                pairs.append(pooled[sequence.name][:, None] * candidate_BGE)
                if f"attention_{sequence.name}.kernel_0" in weights:
                    ids_BL = users.sequences[sequence.name].ids_BLF[..., 0]
                    pairs.append(self._attend(f"attention_{sequence.name}", ids_BL, candidate_BGE))
            if "user_id" in user_fields:
                pairs.append(user_fields["user_id"][:, None] * candidate_BGE)
            kernel, bias = weights["first.kernel"], weights["first.bias"]
            U, V = user_BI.shape[-1], item_BGI.shape[-1]
            first = (
                torch.addmm(bias, user_BI, kernel[:U])[:, None]
                + torch.cat([item_BGI, *pairs], -1) @ kernel[U:]
            )
            assert U + V + sum(p.shape[-1] for p in pairs) == kernel.shape[0]
            scenario = scenario_B.repeat_interleave(G)
            width = weights["expert_blocks_0.norm.scale"].shape[1]
            hidden, gate = first.reshape(B * G, -1).split([width, first.shape[-1] - width], -1)
            hidden = self._block("expert_blocks_0", hidden, scenario)
            layer = 0
            while f"expert_layers_{layer}.kernel" in weights:
                kernel_KIO = weights[f"expert_layers_{layer}.kernel"]
                parts = hidden.chunk(K, -1)
                hidden = torch.cat([parts[k] @ kernel_KIO[k] for k in range(K)], -1)
                hidden = hidden + weights[f"expert_layers_{layer}.bias"]
                layer += 1
                hidden = self._block(f"expert_blocks_{layer}", hidden, scenario)
            rows = torch.arange(B * G)
            weight = torch.softmax(gate.view(B * G, -1, K)[rows, scenario], -1)
            mixed = (hidden.view(B * G, K, -1) * weight[..., None]).sum(1)
            layer = 0
            while f"tower_layers_{layer}.kernel" in weights:
                kernel_SIO = weights[f"tower_layers_{layer}.kernel"]
                every = torch.einsum("ni,sio->nso", mixed, kernel_SIO)
                mixed = (every + weights[f"tower_layers_{layer}.bias"])[rows, scenario]
                if f"tower_blocks_{layer}.norm.scale" in weights:
                    mixed = self._block(f"tower_blocks_{layer}", mixed, scenario)
                layer += 1
            return mixed.view(B, G)

    def _block(self, name: str, x: torch.Tensor, scenario: torch.Tensor) -> torch.Tensor:
        return torch.relu(
            normalise(self.weights, self.statistics, f"{name}.norm", x, scenario, None)
        )

    def _attend(self, unit: str, ids_BL: torch.Tensor, candidate_BGE: torch.Tensor) -> torch.Tensor:
        weights = self.weights
        event_BLE = F.embedding(ids_BL, weights["embedder.item_tables.item_id"], padding_idx=0)
        of_candidate, of_event, of_difference, of_product = weights[f"{unit}.kernel_0"].chunk(4)
        hidden = (candidate_BGE @ (of_candidate + of_difference))[:, :, None]
        hidden = (
            hidden + (event_BLE @ (of_event - of_difference) + weights[f"{unit}.bias_0"])[:, None]
        )
        product = candidate_BGE[..., None] * of_product
        hidden = hidden + torch.einsum("ble,bgea->bgla", event_BLE, product)
        slope = weights[f"{unit}.prelu_slope"]
        layer = 0
        while True:
            hidden = torch.where(hidden >= 0, hidden, slope[layer] * hidden)
            layer += 1
            hidden = hidden @ weights[f"{unit}.kernel_{layer}"]
            if f"{unit}.bias_{layer}" not in weights:
                break
            hidden = hidden + weights[f"{unit}.bias_{layer}"]
        mask_BGL = (ids_BL > 0)[:, None].expand(-1, candidate_BGE.shape[1], -1)
        logit_BGL = hidden[..., 0].masked_fill(~mask_BGL, torch.finfo(hidden.dtype).min)
        weight_BGL = torch.softmax(logit_BGL, -1) * mask_BGL
        return weight_BGL @ event_BLE


def loss(
    logit_BG: torch.Tensor, teacher_logit_BG: torch.Tensor | None, distill_weight: float
) -> torch.Tensor:
    """BCE, the first candidate being the positive, and the distillation term."""
    label_BG = torch.zeros_like(logit_BG)
    label_BG[:, 0] = 1
    total = F.binary_cross_entropy_with_logits(logit_BG, label_BG)
    if teacher_logit_BG is None:
        return total
    share_BG = torch.sigmoid(teacher_logit_BG)
    kl = share_BG * (F.logsigmoid(teacher_logit_BG) - F.logsigmoid(logit_BG)) + (1 - share_BG) * (
        F.logsigmoid(-teacher_logit_BG) - F.logsigmoid(-logit_BG)
    )
    return total + distill_weight * kl.mean()
