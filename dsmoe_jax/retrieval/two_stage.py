"""Top-k in two stages, exact: for devices on which sorting many scores is what top-k costs.

The k best scores lie in the k groups of scores whose largest are largest. One pass finds the
largest of every group, and of all scores only the members of k groups are sorted: with groups of
sqrt(C / k) of C scores these are some 2 sqrt(C k) in all, 20 thousand for 50 of a million.

Equal scores come out in ascending order of position. Let t be the k-th best score and A the number
of groups that hold a better one: k - A groups more are chosen, those with the smallest positions
among the groups whose largest is t. At least A scores are better than t, so at most k - A that are
equal to it are wanted, the first by position, and they lie in the first k - A such groups or in the
A others.

Letters: N queries, C scores of a query, X groups, S scores of a group, T retrieved list length.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int


def top_k(
    score_NC: Float[jax.Array, "N C"], k: int
) -> tuple[Float[jax.Array, "N T"], Int[jax.Array, "N T"]]:
    """The k best scores of every row and their positions, T = min(k, C).

    NaN is the least of all, as -inf is.
    """
    C = score_NC.shape[1]
    k = min(k, C)
    # Zeros of either sign are equal; a sort tells them apart.
    score_NC = jnp.where(score_NC == 0, 0.0, score_NC)
    score_NC = jnp.where(score_NC > -jnp.inf, score_NC, -jnp.inf)
    size = group_size(C, k)
    if size == 1:
        score_NT, place_NT = jax.lax.top_k(score_NC, k)
        return score_NT, place_NT
    missing = -C % size
    if missing:
        score_NC = jnp.pad(score_NC, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    member_NXS = score_NC.reshape(len(score_NC), -1, size)
    _, group_NT = jax.lax.top_k(member_NXS.max(axis=2), k)
    group_NT = jnp.sort(group_NT, axis=1)
    chosen_NTS = jnp.take_along_axis(member_NXS, group_NT[..., None], axis=1)
    score_NT, place_NT = jax.lax.top_k(chosen_NTS.reshape(len(score_NC), -1), k)
    group_NT = jnp.take_along_axis(group_NT, place_NT // size, axis=1)
    # Only among -inf may a place of the padding be chosen.
    return score_NT, jnp.minimum(group_NT * size + place_NT % size, C - 1)


def group_size(num_scores: int, k: int) -> int:
    """Scores of a group, a power of 2 near sqrt(C / k); 1 where grouping saves nothing."""
    size = 1 << max(0, round(math.log2(max(num_scores / k, 1.0)) / 2))
    # As many groups as are chosen, and fewer scores to sort in all.
    while size > 1 and (-(-num_scores // size) < k or num_scores / size + k * size >= num_scores):
        size //= 2
    return size
