"""Training step, a pure function: candidates, logits, loss, gradient, update.

Owns the objective that stages share: the task's loss of a positive and its sampled negatives, BCE
by default, plus the model's auxiliary losses, plus the distillation term when a teacher is given.
The teacher is an argument: it is no part of the state, and no gradient reaches it. A stage may
train on a loss of the model's own instead.

Letters: B examples, N negatives, G = 1 + N candidates, X losses of a row, or items of a row, S
scenarios.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.config import schema
from dsmoe_jax.data import negatives
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import sampled_softmax
from dsmoe_jax.training import losses, optimizer, sharding, train_state

# Sums over the rows of each scenario, [S] per name; divided by "rows" once, when logged. Those of
# several steps are stacked along a new first axis.
Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[train_state.TrainState, Metrics]]


@runtime_checkable
class Teacher(Protocol):
    """What teaches: a Flax module, or what is applied like one."""

    def apply(self, variables: Any, *inputs: Any, train: bool) -> Any:
        """Logits of candidates, and auxiliary losses that nobody reads."""
        ...


def make_train_step(
    model: nn.Module,
    updater: optimizer.Updater,
    *,
    num_items: int,
    num_negatives: int,
    teacher: Teacher | None = None,
    loss: schema.LossConfig | None = None,
    average_decay: float = 0.0,
    loss_method: str = "",
    logit_method: str = "",
) -> Step:
    """Builds `step(state, frozen_teacher, corpus, batch, distill_weight, key)`.

    The step returns the next state and sums per scenario of every loss. `frozen_teacher` is None
    where `teacher` is. `distill_weight` is a traced scalar, so that a warm-up compiles nothing
    anew. Everything random derives from `fold_in(key, state.step)`. `loss` says which negatives are
    drawn and what is learned of them; None for the paper's.

    With `loss_method` the loss is that method's of the model: `(users, items, scenario_B, *, train)
    -> (loss_BX, aux)`, one loss per row or more, in place of the logits and their BCE. Where there
    is a teacher, it is the cross entropy of what `logit_method` gives instead, `(logit_BX, aux)`
    with the positive first, which the teacher is to give too; their divergence is listwise.

    A matcher that draws unlabelled items (`Matcher.draw_unlabelled`) is called with them as
    `unlabelled`, but not for such a loss.

    **Paper:** L = L_task + lambda * mean KL(p_teacher || p_student), section "Distillation".
    **Deviation:** means over rows where the paper sums: Adam is indifferent to the scale.
    """
    chosen = loss or schema.LossConfig()
    is_own_loss = bool(loss_method)
    if is_own_loss and teacher is not None:
        loss_method, is_own_loss = logit_method, False

    def task_loss(logit_BG: jax.Array, drawn: negatives.Candidates) -> jax.Array:
        if loss_method:
            return sampled_softmax.first_among(logit_BG)
        if chosen.task == "pairwise":
            return losses.pairwise(logit_BG, drawn.is_other_BN)
        if chosen.task == "softmax":
            log_share_BN = drawn.log_share_BN if chosen.log_q else None
            return losses.sampled_softmax(logit_BG, drawn.is_other_BN, log_share_BN)
        return losses.candidates_bce(logit_BG, drawn.is_other_BN)

    is_listwise = bool(loss_method) or chosen.distill_kind == "listwise"
    distill = losses.listwise_kl if is_listwise else losses.bernoulli_kl

    def objective(
        params: Any,
        gathered: optimizer.Gathered,
        model_state: dict[str, Any],
        drawn: negatives.Candidates,
        scenario_B: jax.Array,
        teacher_logit_BG: jax.Array | None,
        distill_weight: jax.Array,
        dropout_key: jax.Array,
    ) -> tuple[jax.Array, tuple[dict[str, Any], Metrics]]:
        mutable = [name for name in model_state if name != "constants"]
        items, unlabelled = batch_lib.split_items(gathered.items, 1 + num_negatives)
        extra: dict[str, Any] = {"unlabelled": unlabelled} if unlabelled.sparse_VF.shape[1] else {}
        (output_BX, aux), updated = model.apply(
            {"params": params, **model_state, "constants": gathered.constants},
            gathered.users,
            items,
            scenario_B,
            train=True,
            mutable=mutable,
            rngs={"dropout": dropout_key},
            method=loss_method or "__call__",
            **extra,
        )
        parts_BX = {"loss_task": output_BX if is_own_loss else task_loss(output_BX, drawn)}
        total = parts_BX["loss_task"].mean()
        if teacher_logit_BG is not None:
            parts_BX["loss_distill"] = distill(
                teacher_logit_BG, output_BX, temperature=chosen.distill_temperature
            )
            total = total + distill_weight * parts_BX["loss_distill"].mean()
        for value in aux.values():
            total = total + value
        one_hot_BS = jax.nn.one_hot(scenario_B, model.spec.num_scenarios)
        rows_S = one_hot_BS.sum(axis=0) * output_BX.shape[1]
        # A loss with fewer values in a row than there are candidates counts as often as they.
        width = output_BX.shape[1]
        sums = {
            name: part.sum(axis=1) * (width / part.shape[1]) @ one_hot_BS
            for name, part in parts_BX.items()
        }
        # An auxiliary loss is one number for the batch: every row carries it.
        sums |= {f"loss_{name}": value * rows_S for name, value in aux.items()}
        sums["rows"] = rows_S
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
        step_key = jax.random.fold_in(key, state.step)
        negative_key, dropout_key, unlabelled_key = jax.random.split(step_key, 3)
        drawn = negatives.draw(
            negative_key,
            batch,
            num_items=num_items,
            num_scenarios=model.spec.num_scenarios,
            num_negatives=num_negatives,
            kind=chosen.negatives,
            uniform_share=chosen.uniform_share,
        )
        items = batch_lib.take_items(corpus, drawn.item_BG)
        teacher_logit_BG = None
        if teacher is not None and frozen_teacher is not None:
            teacher_logit_BG, _ = teacher.apply(
                frozen_teacher.variables, batch.users, items, batch.scenario_B, train=False
            )
            teacher_logit_BG = jax.lax.stop_gradient(teacher_logit_BG)
        unlabelled_BX = None
        if isinstance(model, two_tower.Matcher) and not loss_method:
            unlabelled_BX = model.draw_unlabelled(batch.users, batch.scenario_B, unlabelled_key)
        if unlabelled_BX is not None:
            # Beside the candidates: an updater gathers all items of a step at once.
            shown_BX = jnp.concatenate([drawn.item_BG, unlabelled_BX], axis=1)
            items = batch_lib.take_items(corpus, shown_BX)
        constants = state.model_state.get("constants", {})
        gathered = updater.gather(state.params, state.opt_state, batch.users, items, constants)
        gradient, (model_state, metrics) = jax.grad(objective, has_aux=True)(
            gathered.params,
            gathered,
            state.model_state,
            drawn,
            batch.scenario_B,
            teacher_logit_BG,
            distill_weight,
            dropout_key,
        )
        params, opt_state = updater.update(gradient, state.params, gathered, state.step)
        state = state._replace(
            step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state
        )

        def move(average: Any, params: Any, share: jax.Array) -> Any:
            return updater.average(average, params, gathered, share)

        return train_state.move_average(state, average_decay, move), metrics

    return step


def make_end_epoch(
    model: nn.Module,
    mesh: sharding.AnyMesh,
    state: train_state.TrainState,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda end: end,
) -> Callable[[train_state.TrainState, jax.Array], tuple[train_state.TrainState, Metrics]] | None:
    """The jitted `end(state, key)` of a model that does something after an epoch, else None.

    A matcher may declare it, see `two_tower.Matcher.has_end_epoch`. `state` may be shapes alone;
    `wrap` is applied to what is jitted. Returns the state and the model's metrics of the epoch.
    """
    if not (isinstance(model, two_tower.Matcher) and model.has_end_epoch):
        return None

    def end(
        state: train_state.TrainState, key: jax.Array
    ) -> tuple[train_state.TrainState, Metrics]:
        mutable = [name for name in ("params", *state.model_state) if name != "constants"]
        found, updated = model.apply(
            train_state.Frozen(state.params, state.model_state).variables,
            mutable=mutable,
            rngs={"dropout": key},
            method="end_epoch",
        )
        tracked = {name: updated[name] for name in mutable if name != "params"}
        ended = state._replace(
            params=updated["params"], model_state={**state.model_state, **tracked}
        )
        return ended, {f"train/{name}": value for name, value in found.items()}

    jitted: Step = jit_step(wrap(end), mesh, state)
    return jitted


def jit_step(step: Callable[..., Any], mesh: sharding.AnyMesh, state: Any) -> Any:
    """The step, or steps, jitted as training does it: the state is donated and keeps its layout."""
    layout = sharding.state_sharding(mesh, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))


def make_steps(step: Step, most: int) -> Step:
    """Builds `steps(state, frozen_teacher, corpus, batches, distill_weight, key, count)`.

    It takes `count` steps, 1 to `most`, which is traced: groups of every size are one program.
    `batches` are `most` batches stacked along a first axis, of which the first `count` are used;
    metrics are stacked likewise, and those past `count` are zeros.
    """

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
            batch = jax.tree.map(lambda leaf: leaf[index], batches)
            return step(state, frozen_teacher, corpus, batch, distill_weight, key)

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
        taken: tuple[train_state.TrainState, Metrics] = jax.lax.fori_loop(
            0, count, add, (state, empty)
        )
        return taken

    return steps
