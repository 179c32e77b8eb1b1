"""A PyTorch step as a contestant, after it has shown that it equals ours.

Owns the comparison and the optimisers of the twins; their layers are in `twin.py`.
"""

import pathlib
from typing import Any

import numpy as np

from dsmoe_jax.bench import ours, pairs
from dsmoe_jax.capacity import cases

LOSS_TOLERANCE = 1e-5
# Relative to a gradient's largest entry.
GRADIENT_TOLERANCE = 1e-3


def build(
    shape: str, distill: bool, twin_name: str, folder: pathlib.Path
) -> tuple[pairs.Turn, dict[str, Any]]:
    """A PyTorch step, after it has shown that it equals ours.

    Raises:
      ValueError: When the numbers differ.
    """
    import torch

    from dsmoe_jax import batch as batch_lib
    from dsmoe_jax.bench import twin

    sparse = twin_name == "sparse"
    case = cases.make_case(shape, ours.BATCHES)
    corpus, batches = twin.to_torch(case.corpus), [twin.to_torch(b) for b in case.batches]
    params, statistics = _load(folder / "student")
    weights = twin.from_tree(params, gradient=True)
    student = twin.Student(
        case.spec, weights, twin.from_tree(statistics, gradient=False), sparse=sparse
    )
    teacher = None
    if distill:
        teacher_params, teacher_statistics = _load(folder / "teacher")
        teacher = twin.Teacher(
            case.spec,
            twin.from_tree(teacher_params, gradient=False),
            twin.from_tree(teacher_statistics, gradient=False),
            num_experts=teacher_params["expert_layers_0"]["kernel"].shape[0],
        )

    def objective(batch: Any, candidate_BG: Any) -> Any:
        items = batch_lib.take_items(corpus, candidate_BG)
        logit_BG = student.logits(batch.users, items, batch.scenario_B)
        teacher_logit_BG = None
        if teacher is not None:
            teacher_logit_BG = teacher.logits(batch.users, items, batch.scenario_B)
        return twin.loss(logit_BG, teacher_logit_BG, 1.0)

    if twin_name == "compile":
        objective = torch.compile(objective)
    notes = _compare(folder, objective, batches[0], weights)
    large, rest = [], list(weights.values())
    if sparse:
        large = [w for n, w in weights.items() if "_tables." in n and "small_fields" not in n]
        rest = [w for w in rest if not any(w is other for other in large)]
    rate, decay = ours.LEARNING_RATE, ours.WEIGHT_DECAY
    optimizers: list[Any] = [torch.optim.Adam(rest, lr=rate, weight_decay=decay, fused=True)]
    if large:
        optimizers.append(torch.optim.SparseAdam(large, lr=rate))
    taken = 0

    def turn(repetitions: int) -> None:
        nonlocal taken
        for _ in range(repetitions):
            batch = batches[taken % len(batches)]
            negative_BN = torch.randint(1, case.spec.num_items, (cases.POSITIVES, cases.NEGATIVES))
            candidate_BG = torch.cat([batch.item_B[:, None], negative_BN], 1)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            objective(batch, candidate_BG).backward()
            for optimizer in optimizers:
                optimizer.step()
            taken += 1

    return turn, {**notes, "torch": torch.__version__, "threads": torch.get_num_threads()}


def _compare(folder: pathlib.Path, objective: Any, batch: Any, weights: Any) -> dict[str, float]:
    import torch

    from dsmoe_jax.bench import twin

    with np.load(folder / "expected.npz") as expected:
        candidate_BG = torch.tensor(expected["candidate"]).long()
        want = float(expected["loss"])
    got = objective(batch, candidate_BG)
    got.backward()
    gradient = twin.from_tree(_load(folder / "gradient")[0], gradient=False)
    worst, where = 0.0, ""
    for name, wanted in gradient.items():
        found = weights[name].grad
        found = torch.zeros_like(wanted) if found is None else found.to_dense()
        difference = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
        if difference > worst:
            worst, where = difference, name
    error = abs(got.item() - want) / abs(want)
    if error > LOSS_TOLERANCE or worst > GRADIENT_TOLERANCE:
        raise ValueError(
            f"the twin differs: loss {got.item():.7f} against {want:.7f}, gradient of {where} by "
            f"{worst:.1e} of its largest entry"
        )
    for weight in weights.values():
        weight.grad = None
    return {"loss_difference": error, "gradient_difference": worst}


def _load(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found: dict[str, Any] = {"params": {}, "statistics": {}}
    with np.load(f"{path}.npz") as arrays:
        for name, value in arrays.items():
            *parents, leaf = name.split(".")
            node = found
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
    return found["params"], found["statistics"]
