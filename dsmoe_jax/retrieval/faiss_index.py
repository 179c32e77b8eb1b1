"""Exact maximum inner product search by FAISS (`IndexFlatIP`), on a GPU where FAISS sees one.

The only module that imports faiss, which comes with the extras `cpu` and `cuda12`. Scores agree
with `exact.ExactIndex` to rounding; items of equal score may come in another order.

Letters: Q queries, M interests, D tower output, T retrieved list length, V rows of the corpus.
"""

from typing import Any

import faiss
import jax
import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax.retrieval import checks
from dsmoe_jax.retrieval import index as index_lib

# FAISS's limit for a search on a GPU.
_MAX_GPU_K = 2048


def has_gpu_code() -> bool:
    """Whether FAISS was built for GPUs: faiss-cpu has not even the function that counts them."""
    return hasattr(faiss, "StandardGpuResources")


def sees_gpu() -> bool:
    """Whether FAISS searches on a GPU here."""
    return has_gpu_code() and faiss.get_num_gpus() > 0


class FaissIndex:
    """Flat inner product index; implements `index.Index`."""

    def __init__(self, item_VD: Float[jax.Array | np.ndarray, "V D"]):
        """Copies the corpus, row = item id, into FAISS; row 0 is padding and never returned."""
        # Row 0 is left out, so FAISS's position p is item p + 1.
        item_XD = np.ascontiguousarray(np.asarray(item_VD)[1:], dtype=np.float32)
        self._index: Any = faiss.IndexFlatIP(item_XD.shape[1])
        self.on_gpu = sees_gpu()
        if self.on_gpu:
            self._resources = faiss.StandardGpuResources()
            self._index = faiss.index_cpu_to_gpu(self._resources, 0, self._index)
        # From so many queries on FAISS multiplies matrices. Its own threshold leaves batches as
        # small as an evaluation's to a loop that took four times as long.
        faiss.cvar.distance_compute_blas_threshold = 20
        self._index.add(item_XD)

    @property
    def num_candidates(self) -> int:
        """V - 1."""
        return int(self._index.ntotal)

    def search(
        self, query_QMD: Float[jax.Array | np.ndarray, "Q M D"], k: int
    ) -> tuple[Float[jax.Array | np.ndarray, "Q T"], Int[jax.Array | np.ndarray, "Q T"]]:
        """See `index.Index.search`.

        Raises:
          ValueError: On a GPU, if k exceeds FAISS's limit there.
        """
        checks.check_search(query_QMD.shape, self._index.d, k)
        if self.on_gpu and k > _MAX_GPU_K:
            raise ValueError(
                f"k: expected at most {_MAX_GPU_K}, the limit of FAISS on a GPU, got {k} (cut-off "
                "plus seen items); use the exact backend"
            )
        Q, M, D = query_QMD.shape
        query_ND = np.ascontiguousarray(np.asarray(query_QMD, np.float32).reshape(Q * M, D))
        score_NT, position_NT = self._index.search(query_ND, k)
        item_NT = (position_NT + 1).astype(np.int32)  # FAISS fills short lists with -1
        score_NT = np.where(item_NT == 0, np.float32(-np.inf), score_NT)
        apart = score_NT.reshape(Q, M, k), item_NT.reshape(Q, M, k)
        lists: tuple[jax.Array, jax.Array] = index_lib.merge_interests(*apart, k)
        return lists
