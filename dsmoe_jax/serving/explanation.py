"""Explanation: a score as the sum of what each event, expert and prior adds to it.

Owns the split of folded towers' scores. A hidden layer is no sum over its inputs: where a tower is
one, its score is split by expert and no further.

Letters: D a vector, F hidden units, L history length.
"""

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.serving import towers


class Explanation(NamedTuple):
    """A score and its parts.

    Attributes:
      score: What search ranks by.
      parts: `part` ("event", "scenario", "prior", "item", "expert", "constant"), `detail` (of an
        event its sequence, of an expert its number), `item_id` of an event, and `value`, which sum
        to the score.
    """

    score: float
    parts: pl.DataFrame


def explain(
    tower: Any,
    users: batch_lib.Users,
    scenario: int,
    item_D: Float[np.ndarray, "D"],
    item_raw_id_V: np.ndarray,
) -> Explanation:
    """The parts of <user vector, item vector> of one user.

    Raises:
      ValueError: When the score is no sum of parts: of a program, or of an encoded history.
    """
    if not isinstance(tower, towers.FoldedUserTower):
        raise ValueError(
            "explain: expected a tower that folds, whose score is a sum of parts; this one is a "
            "compiled program of the whole history"
        )
    if tower.history:
        raise ValueError(
            "explain: expected a tower whose score is a sum of parts; this one encodes the whole "
            "history at once"
        )
    score = float(tower(users, np.array([scenario]))[0, 0] @ item_D)
    rows: list[tuple[str, str, Any, float]] = []
    linear, pooled, place = tower.linear, {}, 0
    if linear:
        place = linear.kind_SD.shape[1] + 2
        factor_D, bias, prior = item_D[: place - 2], item_D[place - 2], item_D[place - 1]
        pooled = linear.pool(users.sequences)
        scale = float(
            linear.scale(linear.taste(pooled, np.array([scenario])), np.array([scenario]))[0]
        )
        for bag in linear.bags:
            ids_L = users.sequences[bag["sequence"]].ids_BLF[0, :, 0]
            weight_L = linear.weigh(bag, ids_L[None])[0]
            value_L = scale * weight_L * (linear.tables[bag["sequence"]][ids_L] @ factor_D)
            for item, value in zip(ids_L.tolist(), value_L.tolist(), strict=True):
                if item:
                    raw = item_raw_id_V[item].item()
                    rows.append(("event", bag["sequence"], raw, value))
        rows.append(("scenario", "", None, scale * float(linear.kind_SD[scenario] @ factor_D)))
        rows.append(("item", "", None, scale * float(bias)))
        rows.append(("prior", "", None, float(prior)))
    if tower.perceptron:
        part_D = item_D[place:]
        rows += _experts(tower.perceptron, users, pooled, scenario, part_D, tower.num_experts)
    frame = pl.DataFrame(
        rows, schema=["part", "detail", "item_id", "value"], orient="row", infer_schema_length=None
    )
    return Explanation(score, frame)


def _experts(
    perceptron: towers.Perceptron,
    users: batch_lib.Users,
    pooled: dict[str, np.ndarray],
    scenario: int,
    item_D: Float[np.ndarray, "D"],
    num_experts: int,
) -> list[tuple[str, str, Any, float]]:
    input_BI = perceptron.embed(
        users.sparse_BF, users.dense_BF, users.bags, users.sequences, pooled
    )
    s = scenario if len(perceptron.second_SFD) > 1 else 0
    value_F = perceptron.hide(input_BI, scenario)[0] * (perceptron.second_SFD[s] @ item_D)
    rows: list[tuple[str, str, Any, float]] = [
        ("expert", str(k), None, float(part_F.sum()))
        for k, part_F in enumerate(np.split(value_F, num_experts))
    ]
    return [*rows, ("constant", "", None, float(perceptron.bias_SD[s] @ item_D))]
