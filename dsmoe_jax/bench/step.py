"""A training step against PyTorch twins of the same model, in turns.

Owns the contestants. All draw their negatives and gather the candidates' features in the step; all
run on the same batches, which are on the device already. Before anything is timed each twin shows
that it computes the same loss and gradients from the same weights.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from dsmoe_jax import identity
from dsmoe_jax.bench import cases, pairs

BATCHES = 8
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-6
LOSS_TOLERANCE = 1e-5
# Relative to a gradient's largest entry.
GRADIENT_TOLERANCE = 1e-3
TWINS = ("eager", "compile", "sparse")
OURS = ("dense", "row_sparse")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("--shape", choices=sorted(cases.CASES), default="kuairand")
    parser.add_argument("--distill", action="store_true", help="with a teacher in the step")
    parser.add_argument(
        "--ours", type=_names(OURS, 1), default=("dense",), help=f"of {', '.join(OURS)}"
    )
    parser.add_argument(
        "--twins", type=_names(TWINS, 0), default=TWINS[:2], help=f"of {', '.join(TWINS)}"
    )
    parser.add_argument("--hidden_dim", type=int, default=256)
    parser.add_argument("--output_dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repetitions", type=int, default=5, help="steps in a turn")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs with the parsed flags; see `run`."""
    return run(
        shape=options.shape,
        distill=options.distill,
        ours=options.ours,
        twins=options.twins,
        overrides={"hidden_dim": options.hidden_dim, "output_dim": options.output_dim},
        rounds=options.rounds,
        repetitions=options.repetitions,
    )


def _names(known: tuple[str, ...], at_least: int) -> Callable[[str], tuple[str, ...]]:
    """A flag's type: names among `known`, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name)
        if len(names) < at_least or not set(names) <= set(known):
            raise argparse.ArgumentTypeError(
                f"expected names among {', '.join(known)}, got {text!r}"
            )
        return names

    return parse


def run(
    *,
    shape: str,
    distill: bool,
    ours: tuple[str, ...],
    twins: tuple[str, ...],
    overrides: dict[str, Any],
    rounds: int,
    repetitions: int,
) -> dict[str, Any]:
    """Times our steps and their twins.

    Args:
      shape: Name in `cases.CASES`.
      distill: Whether a frozen MMOE-DIN teacher is in the step.
      ours: Names in `OURS`, at least one.
      twins: Names in `TWINS`.
      overrides: Fields of `dsmoe.DSMOEConfig` that differ from the paper's shape.
      rounds: Turns of each contestant.
      repetitions: Steps in a turn.

    Raises:
      ValueError: When a twin is not equal to ours, or cannot be built.
    """
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name:
        folder = pathlib.Path(name)
        contestants = {
            f"dsmoe_jax {name}": pairs.Contestant(
                build_ours, (shape, distill, name, overrides, folder)
            )
            for name in ours
        }
        for twin in twins:
            contestants[f"PyTorch {twin}"] = pairs.Contestant(
                build_twin, (shape, distill, twin, folder)
            )
        timings = pairs.take_turns(contestants, rounds=rounds, repetitions=repetitions, warmup=5)
    mine = {name: timings[f"dsmoe_jax {name}"] for name in ours}
    ends = ("median", "least", "greatest")
    return {
        "shape": shape,
        "distill": distill,
        "positives": cases.POSITIVES,
        "candidates": cases.POSITIVES * (1 + cases.NEGATIVES),
        "step_ms": {name: 1e3 * timing.median for name, timing in timings.items()},
        # How many times as long each takes as each of ours, in the same round.
        "ratio": {
            own: {
                name: dict(zip(ends, pairs.ratio(timing, reference), strict=True))
                for name, timing in timings.items()
                if timing is not reference
            }
            for own, reference in mine.items()
        },
        "notes": {name: timing.notes for name, timing in timings.items()},
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    notes = next(iter(found["notes"].values()))
    products_ms = 1e3 * notes["matmul_flop"] / notes["peak_flop_per_s"]
    teacher = " with its teacher" if found["distill"] else ""
    lines = [
        f"step, {found['shape']} shape{teacher}: {found['positives']} positives, "
        f"{found['candidates']:,} pairs",
        f"  machine: {notes['peak_flop_per_s'] / 1e9:,.0f} GFLOP/s in a large product, "
        f"{notes['peak_byte_per_s'] / 1e9:,.1f} GB/s in a copy",
        f"  matrix products of our step: {notes['matmul_flop'] / 1e9:.2f} GFLOP, "
        f"{products_ms:.1f} ms at that rate",
    ]
    for name, step_ms in found["step_ms"].items():
        texts = [f"  {name:<22} {step_ms:8.1f} ms, {step_ms / products_ms:5.2f} x the products"]
        for own, ratios in found["ratio"].items():
            if name in ratios:
                entry = ratios[name]
                texts.append(
                    f"{entry['median']:.2f} x {own} [{entry['least']:.2f}, {entry['greatest']:.2f}]"
                )
        lines.append(", ".join(texts))
    return lines


def build_ours(
    shape: str, distill: bool, embedding: str, overrides: dict[str, Any], folder: pathlib.Path
) -> tuple[pairs.Turn, dict[str, Any]]:
    """Our jitted, donated step; leaves weights, loss and gradients for the twins."""
    import jax
    import jax.numpy as jnp
    import optax

    from dsmoe_jax import optim, row_sparse, sharding, train_state, train_step
    from dsmoe_jax.bench import peak
    from dsmoe_jax.data import negatives
    from dsmoe_jax.models.matching import dsmoe
    from dsmoe_jax.models.ranking import mmoe_din

    case = cases.CASES[shape](BATCHES)
    mesh = sharding.make_mesh()
    corpus = sharding.put_replicated(mesh, case.corpus)
    batches = [sharding.put_batch(mesh, batch) for batch in case.batches]
    model = dsmoe.DSMOEConfig(**overrides).make(case.spec)
    updater: optim.Updater = optim.Dense(optim.make_optimizer(LEARNING_RATE, WEIGHT_DECAY))
    if embedding == "row_sparse":
        updater = row_sparse.RowSparse(case.spec, LEARNING_RATE, WEIGHT_DECAY)
    state = train_state.init_state(model, updater, key=jax.random.key(0), mesh=mesh)
    teacher, frozen = None, None
    if distill:
        teacher = mmoe_din.MMoEDINConfig().make(case.spec)
        frozen = train_state.freeze(
            train_state.init_state(teacher, updater, key=jax.random.key(1), mesh=mesh)
        )
    key, weight = jax.random.key(3), jnp.float32(1.0)

    def make_step(chosen: optim.Updater) -> train_step.Step:
        return train_step.make_train_step(
            model,
            chosen,
            num_items=case.spec.num_items,
            num_negatives=cases.NEGATIVES,
            teacher=teacher,
        )

    # A step whose optimiser does nothing but keep the gradient.
    keep = optim.Dense(optax.trace(decay=0.0))
    kept, metrics = jax.jit(make_step(keep))(
        state._replace(opt_state=keep.init(state.params)), frozen, corpus, batches[0], weight, key
    )
    negative_key, _ = jax.random.split(jax.random.fold_in(key, state.step))
    candidate_BG = negatives.draw_candidates(
        negative_key,
        batches[0].item_B,
        num_items=case.spec.num_items,
        num_negatives=cases.NEGATIVES,
    )
    _save(folder / "student", state.params, state.model_state["batch_stats"])
    _save(folder / "gradient", kept.opt_state.trace, {})
    if frozen is not None:
        _save(folder / "teacher", frozen.params, frozen.model_state["batch_stats"])
    np.savez(
        folder / "expected.npz",
        candidate=np.asarray(candidate_BG),
        loss=np.asarray(metrics["loss"]),
    )
    step = make_step(updater)
    notes = {
        "matmul_flop": peak.count_matmul_flops(
            step, state, frozen, corpus, batches[0], weight, key
        ),
        "peak_flop_per_s": peak.matmul_flops(),
        "peak_byte_per_s": peak.stream_bytes(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "device": str(jax.devices()[0].device_kind),
        "jax": jax.__version__,
    }
    layout = sharding.state_sharding(mesh, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))
    taken = 0

    def turn(repetitions: int) -> None:
        nonlocal state, taken
        for _ in range(repetitions):
            batch = batches[taken % len(batches)]
            state, _ = jitted(state, frozen, corpus, batch, weight, key)
            taken += 1
        jax.block_until_ready(state)

    return turn, notes


def build_twin(
    shape: str, distill: bool, twin_name: str, folder: pathlib.Path
) -> tuple[pairs.Turn, dict[str, Any]]:
    """A PyTorch step, after it has shown that it equals ours.

    Raises:
      ValueError: When PyTorch is missing or the numbers differ.
    """
    try:
        import torch
    except ImportError:
        raise ValueError("expected PyTorch, found none; pip install '.[cpu,bench]'") from None
    from dsmoe_jax import batch as batch_lib
    from dsmoe_jax.bench import twin

    sparse = twin_name == "sparse"
    case = cases.CASES[shape](BATCHES)
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
    if sparse:
        large = [w for n, w in weights.items() if "_tables." in n and "small_fields" not in n]
        rest = [w for w in weights.values() if not any(w is other for other in large)]
        optimizers = [
            torch.optim.SparseAdam(large, lr=LEARNING_RATE),
            torch.optim.Adam(rest, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True),
        ]
    else:
        optimizers = [
            torch.optim.Adam(
                list(weights.values()), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
            )
        ]
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


def _save(path: pathlib.Path, params: Any, statistics: Any) -> None:
    flat: dict[str, Any] = {}
    for kind, tree in (("params", params), ("statistics", statistics)):
        for name, leaf in identity.flatten(tree).items():
            flat[f"{kind}.{name}"] = np.asarray(leaf)
    np.savez(f"{path}.npz", **flat)


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
