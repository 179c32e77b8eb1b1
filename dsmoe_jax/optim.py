"""The optimiser of the paper's recipe."""

import optax

# PyTorch's and Optax's defaults.
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def make_optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Adam with coupled L2, as `torch.optim.Adam(weight_decay=...)`.

    The L2 term joins the gradient before Adam's moments; `optax.adamw` would decay the parameters
    beside them, which is another recipe.

    **Paper:** "Implementation details": Adam, learning rate 1e-4, weight decay 1e-6.

    Args:
      learning_rate: Step size > 0.
      weight_decay: Factor of the parameters that is added to their gradient, >= 0.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.adam(learning_rate, b1=BETA_1, b2=BETA_2, eps=EPSILON),
    )
