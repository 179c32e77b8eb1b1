"""Losses on logits, one value per element; the training step reduces.

Owns one function per equation; `train_step.make_train_step` adds them up, weighted by `loss` of the
configuration. Auxiliary losses are in the files of the methods that have them.

Letters: as the caller's; B examples, N negatives, G = 1 + N candidates, the positive first.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float


def bce_with_logits(
    logit: Float[jax.Array, "..."], label: Float[jax.Array, "..."]
) -> Float[jax.Array, "..."]:
    """Binary cross entropy, softplus(z) - y z.

    **Paper:** section "Training", L_task.
    **Deviation:** the paper prints the formula without its leading minus; minimising that would
    maximise the cross entropy.

    Args:
      logit: z, any real number.
      label: y in [0, 1], soft labels included.
    """
    return jax.nn.softplus(logit) - label * logit


def candidates_bce(
    logit_BG: Float[jax.Array, "B G"], is_other_BN: Bool[jax.Array, "B N"] | None
) -> Float[jax.Array, "B G"]:
    """Binary cross entropy of a positive and its negatives.

    Negatives that are the positive itself count nothing, and the others of their row the more.
    """
    loss_BG = bce_with_logits(logit_BG, jnp.zeros_like(logit_BG).at[:, 0].set(1.0))
    if is_other_BN is None:
        return loss_BG
    return _mean_of(loss_BG, jnp.pad(is_other_BN, ((0, 0), (1, 0)), constant_values=True))


def pairwise(
    logit_BG: Float[jax.Array, "B G"], is_other_BN: Bool[jax.Array, "B N"] | None
) -> Float[jax.Array, "B N"]:
    """-log sigmoid(logit of the positive - logit of a negative) of every negative.

    Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, section
    4.1. Negatives that are the positive itself count nothing, and the others of their row the more.
    """
    loss_BN = jax.nn.softplus(logit_BG[:, 1:] - logit_BG[:, :1])
    return loss_BN if is_other_BN is None else _mean_of(loss_BN, is_other_BN)


def sampled_softmax(
    logit_BG: Float[jax.Array, "B G"],
    is_other_BN: Bool[jax.Array, "B N"] | None,
    log_share_BN: Float[jax.Array, "B N"] | None = None,
) -> Float[jax.Array, "B 1"]:
    """Cross entropy of the positive under a softmax over the candidates, in nats.

    With `log_share_BN`, the log of the probability Q with which each negative was drawn, negatives
    stand for all other items: the mean of exp(z - log Q) over draws estimates the sum of exp(z)
    over them, without bias. So log Q is subtracted from their logits, and the positive, which is
    not drawn, keeps its own.

    Bengio and Senecal, "Adaptive Importance Sampling to Accelerate Training of a Neural
    Probabilistic Language Model", IEEE Transactions on Neural Networks 19 (2008), section III.
    """
    other_BN = logit_BG[:, 1:]
    if log_share_BN is not None:
        other_BN = other_BN - log_share_BN - jnp.log(float(other_BN.shape[1]))
    if is_other_BN is not None:
        other_BN = jnp.where(is_other_BN, other_BN, -jnp.inf)
    own_B1 = logit_BG[:, :1]
    total_BG = jnp.concatenate([own_B1, other_BN], axis=1)
    return jax.nn.logsumexp(total_BG, axis=1, keepdims=True) - own_B1


def _mean_of(
    loss_BX: Float[jax.Array, "B X"], counts_BX: Bool[jax.Array, "B X"]
) -> Float[jax.Array, "B X"]:
    """Losses whose mean over a row is that of the losses which count; 0 where none does."""
    share_B1 = counts_BX.mean(axis=1, keepdims=True)
    return jnp.where(counts_BX, loss_BX, 0.0) / jnp.maximum(share_B1, 1 / loss_BX.shape[1])


def bernoulli_kl(
    teacher_logit: Float[jax.Array, "..."],
    logit: Float[jax.Array, "..."],
    *,
    temperature: float = 1.0,
) -> Float[jax.Array, "..."]:
    """KL(p_t || p_s) between Bernoulli distributions given by logits; the teacher gets no gradient.

    From log-sigmoids, finite for any finite logit; its derivative with respect to the student's
    logit is sigmoid(z) - sigmoid(z_t).

    **Paper:** section "Distillation", L_distill.
    **Deviation:** the temperature is ours; the paper's definition of p_s implies 1.

    Args:
      teacher_logit: z_t.
      logit: z of the student.
      temperature: tau > 0 divides both logits; the value is scaled by tau^2, which keeps the
        gradient's size.
    """
    teacher_logit = jax.lax.stop_gradient(teacher_logit) / temperature
    logit = logit / temperature
    positive = jax.nn.log_sigmoid(teacher_logit) - jax.nn.log_sigmoid(logit)
    negative = jax.nn.log_sigmoid(-teacher_logit) - jax.nn.log_sigmoid(-logit)
    divergence = (
        jax.nn.sigmoid(teacher_logit) * positive + jax.nn.sigmoid(-teacher_logit) * negative
    )
    return divergence * temperature**2


def listwise_kl(
    teacher_logit_BG: Float[jax.Array, "B G"],
    logit_BG: Float[jax.Array, "B G"],
    *,
    temperature: float = 1.0,
) -> Float[jax.Array, "B 1"]:
    """KL(p_t || p_s) between softmaxes over the candidates; the teacher gets no gradient.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2:
    `temperature` > 0 divides all logits, and the value is scaled by its square. A candidate whose
    logits are both -inf takes no part.
    """
    teacher_logit_BG = jax.lax.stop_gradient(teacher_logit_BG) / temperature
    log_teacher_BG = jax.nn.log_softmax(teacher_logit_BG, axis=1)
    log_student_BG = jax.nn.log_softmax(logit_BG / temperature, axis=1)
    takes_part_BG = jnp.isfinite(log_teacher_BG)
    gap_BG = jnp.where(takes_part_BG, log_teacher_BG - log_student_BG, 0.0)
    divergence_BG = jnp.exp(log_teacher_BG) * gap_BG
    return divergence_BG.sum(axis=1, keepdims=True) * temperature**2
