"""Losses on logits, one value per element; the training step reduces.

Owns one function per equation; `train_step.make_train_step` adds them up, weighted by `loss` of the
configuration. Auxiliary losses are in the files of the methods that have them.

Letters: as the caller's, usually [B, G].
"""

import jax
from jaxtyping import Float


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
