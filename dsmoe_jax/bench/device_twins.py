"""PyTorch on the accelerator: the step's twin and exact search.

Owns how they get there: PyTorch's default device is set before anything is made, in a process of
their own. They are compared with ours in full float32 and timed with the products that ours use.

Letters: Q queries, D vector width, V rows of the corpus, B queries of a block.
"""

import importlib.util
import pathlib
from typing import Any

import jax
import numpy as np

from dsmoe_jax.bench import pairs, twin_step

_DIM = 64
_SCORE_BYTES = 1 << 30


def find_device() -> str:
    """PyTorch's name of the accelerator that JAX uses.

    Raises:
      ValueError: When PyTorch is not installed for it.
    """
    if jax.default_backend() != "gpu":
        raise ValueError(f"PyTorch: expected an NVIDIA GPU, got {jax.default_backend()}")
    if importlib.util.find_spec("torch") is None:
        raise ValueError("PyTorch: expected torch with CUDA, which is not installed")
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"PyTorch: expected torch with CUDA, got {torch.__version__} without")
    return "cuda"


def make_vectors(items: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Random vectors [V, D], of which row 0 is padding, and [Q, D]."""
    rng = np.random.default_rng(0)
    item_VD = rng.standard_normal((items + 1, _DIM), dtype=np.float32)
    return item_VD, rng.standard_normal((queries, _DIM), dtype=np.float32)


def build_step(
    device: str, shape: str, twin_name: str, folder: pathlib.Path
) -> tuple[pairs.Turn, dict[str, Any]]:
    """A PyTorch step on a device, after it has shown that it equals ours.

    Raises:
      ValueError: When the numbers differ.
    """
    import torch

    torch.set_default_device(device)
    step, notes = twin_step.build(shape, False, twin_name, folder)
    # Operands of products rounded as JAX rounds them on a GPU unless it is told not to.
    torch.set_float32_matmul_precision("high")

    def turn(repetitions: int) -> None:
        step(repetitions)
        _wait(device)

    return turn, {**notes, "device": device}


def build_search(device: str, items: int, queries: int, k: int) -> pairs.Turn:
    """PyTorch's product in full float32 and its top-k, over blocks of queries."""
    import torch

    torch.set_default_device(device)
    item_VD, query_QD = make_vectors(items, queries)
    item_DX, query = torch.tensor(item_VD)[1:].T, torch.tensor(query_QD)
    rows = max(1, _SCORE_BYTES // (4 * items))

    def turn(repetitions: int) -> None:
        for _ in range(repetitions):
            lists = [torch.topk(query_BD @ item_DX, k) for query_BD in query.split(rows)]
            torch.cat([found.indices for found in lists])
        _wait(device)

    return turn


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
