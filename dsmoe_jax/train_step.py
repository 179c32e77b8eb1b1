"""One step of training: candidates, logits, loss, gradient, update. Pure.

Owns the objective that every stage shares: BCE over a positive and its sampled negatives, plus the
model's auxiliary losses, plus the distillation term when a teacher is given. The teacher is an
argument: it is no part of the state, and no gradient reaches it.

Letters: B examples, N negatives, G = 1 + N candidates, S scenarios.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import losses, optim, sharding, train_state
from dsmoe_jax.data import negatives

# Sums over the rows of each scenario, [S] per name; divided by "rows" once, when reported.
Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[train_state.TrainState, Metrics]]
# Several steps; their metrics are stacked along a new first axis.
Steps = Callable[..., tuple[train_state.TrainState, Metrics]]


def make_train_step(
    model: nn.Module,
    updater: optim.Updater,
    *,
    num_items: int,
    num_negatives: int,
    teacher: nn.Module | None = None,
    distill_temperature: float = 1.0,
    average_decay: float = 0.0,
) -> Step:
    """Builds `step(state, frozen_teacher, corpus, batch, distill_weight, key)`.

    The step returns the next state and sums per scenario of every loss. `frozen_teacher` is None
    where `teacher` is. `distill_weight` is a traced scalar, so that a warm-up compiles nothing
    anew. Everything random derives from `fold_in(key, state.step)`.

    **Paper:** L = L_task + lambda * mean KL(p_teacher || p_student), section "Distillation".
    **Deviation:** means over rows where the paper sums: Adam is indifferent to the scale.
    """

    def objective(
        params: Any,
        model_state: dict[str, Any],
        users: batch_lib.Users,
        scenario_B: jax.Array,
        items: batch_lib.Items,
        teacher_logit_BG: jax.Array | None,
        distill_weight: jax.Array,
        dropout_key: jax.Array,
    ) -> tuple[jax.Array, tuple[dict[str, Any], Metrics]]:
        mutable = [name for name in model_state if name != "constants"]
        (logit_BG, aux), updated = model.apply(
            {"params": params, **model_state},
            users,
            items,
            scenario_B,
            train=True,
            mutable=mutable,
            rngs={"dropout": dropout_key},
        )
        label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
        parts_BG = {"loss_task": losses.bce_with_logits(logit_BG, label_BG)}
        total = parts_BG["loss_task"].mean()
        if teacher_logit_BG is not None:
            kl_BG = losses.bernoulli_kl(teacher_logit_BG, logit_BG, temperature=distill_temperature)
            parts_BG["loss_distill"] = kl_BG
            total = total + distill_weight * kl_BG.mean()
        for value in aux.values():
            total = total + value
        one_hot_BS = jax.nn.one_hot(scenario_B, model.spec.num_scenarios)
        sums = {name: part.sum(axis=1) @ one_hot_BS for name, part in parts_BG.items()}
        sums["rows"] = one_hot_BS.sum(axis=0) * logit_BG.shape[1]
        sums["loss"] = total
        return total, ({**model_state, **updated}, sums)

    def step(
        state: train_state.TrainState,
        frozen_teacher: train_state.Frozen | None,
        corpus: batch_lib.Items,
        batch: batch_lib.Batch,
        distill_weight: jax.Array,
        key: jax.Array,
    ) -> tuple[train_state.TrainState, Metrics]:
        negative_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        candidate_BG = negatives.draw_candidates(
            negative_key, batch.item_B, num_items=num_items, num_negatives=num_negatives
        )
        items = batch_lib.take_items(corpus, candidate_BG)
        teacher_logit_BG = None
        if teacher is not None and frozen_teacher is not None:
            teacher_logit_BG, _ = teacher.apply(
                {"params": frozen_teacher.params, **frozen_teacher.model_state},
                batch.users,
                items,
                batch.scenario_B,
                train=False,
            )
            teacher_logit_BG = jax.lax.stop_gradient(teacher_logit_BG)
        shown = updater.show(state.params, state.opt_state, batch.users, items)
        gradient, (model_state, metrics) = jax.grad(objective, has_aux=True)(
            shown.params,
            state.model_state,
            shown.users,
            batch.scenario_B,
            shown.items,
            teacher_logit_BG,
            distill_weight,
            dropout_key,
        )
        params, opt_state = updater.update(gradient, state.params, shown, state.step)
        state = state._replace(
            step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state
        )

        def move(average: Any, params: Any, share: jax.Array) -> Any:
            return updater.average(average, params, shown, share)

        return train_state.move_average(state, average_decay, move), metrics

    return step


def jit_step(step: Callable[..., Any], mesh: sharding.AnyMesh, state: Any) -> Any:
    """The step, or steps, jitted as training does it: the state is donated and keeps its layout.

    Args:
      step: From `make_train_step` or `make_steps`.
      mesh: The devices.
      state: A `TrainState`, or its shapes.
    """
    layout = sharding.state_sharding(mesh, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))


def make_steps(step: Step, most: int) -> Steps:
    """Builds `steps(state, frozen_teacher, corpus, batches, distill_weight, key, count)`.

    It takes `count` steps, 1 to `most`, which is traced: groups of every size are one program.
    `batches` are `most` batches stacked along a first axis, of which the first `count` are used;
    metrics are stacked likewise, and those past `count` are zeros.
    """

    def take(batches: batch_lib.Batch, index: jax.Array | int) -> batch_lib.Batch:
        return jax.tree.map(lambda leaf: leaf[index], batches)

    def steps(
        state: train_state.TrainState,
        frozen_teacher: train_state.Frozen | None,
        corpus: batch_lib.Items,
        batches: batch_lib.Batch,
        distill_weight: jax.Array,
        key: jax.Array,
        count: jax.Array,
    ) -> tuple[train_state.TrainState, Metrics]:
        def run(
            state: train_state.TrainState, index: jax.Array | int
        ) -> tuple[train_state.TrainState, Metrics]:
            return step(state, frozen_teacher, corpus, take(batches, index), distill_weight, key)

        if most == 1:
            state, metrics = run(state, 0)
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)

        def add(
            index: jax.Array, carry: tuple[train_state.TrainState, Metrics]
        ) -> tuple[train_state.TrainState, Metrics]:
            state, found = carry
            state, metrics = run(state, index)
            return state, {name: found[name].at[index].set(metrics[name]) for name in found}

        shapes = jax.eval_shape(lambda: run(state, 0)[1])
        empty = {name: jnp.zeros((most, *s.shape), s.dtype) for name, s in shapes.items()}
        return jax.lax.fori_loop(0, count, add, (state, empty))

    return steps
