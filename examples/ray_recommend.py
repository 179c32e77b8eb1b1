"""Lists for a table of users by Ray Data, on this machine or a cluster.

    python examples/ray_recommend.py BUNDLE users.parquet lists --workers 7

As `dsmoe recommend --users`, which needs no Ray, with Ray's scheduling in place of `--part i/n`.
BUNDLE must lie where every worker finds it. A worker opens it once and maps it, so that the workers
of a machine share its memory. RAY_ADDRESS names a cluster; without it Ray starts on this machine.
"""

import argparse
from collections.abc import Sequence

import polars as pl
import pyarrow
import ray

# The part of the package that answers from a bundle; folded towers are NumPy alone.
from dsmoe_jax.serving import retriever


class Recommend:
    """A worker: tables of users in, tables of their lists out."""

    def __init__(self, bundle: str, scenario: str | Sequence[str], k: int):
        self._retriever = retriever.Retriever.load(bundle)
        self._scenario, self._k = scenario, k

    def __call__(self, users: pyarrow.Table) -> pyarrow.Table:
        """`user_id`, `scenario`, `item_id`, `score` and `rank`, from columns as of a request."""
        lists = self._retriever.recommend(pl.from_arrow(users), self._scenario, self._k)
        return lists.to_arrow(compat_level=pl.CompatLevel.oldest())


def main(
    bundle: str,
    users: str,
    out: str,
    *,
    scenario: str | Sequence[str] = "all",
    k: int = 100,
    workers: int = 1,
    batch_users: int = 4096,
) -> None:
    """Writes Parquet files to the folder `out`, in no order: rows name user, scenario and rank.

    Args:
      bundle: Folder of a bundle, the same one on every machine.
      users: Parquet file or folder with `user_id` and whatever else a request may have.
      out: Folder.
      scenario: A name, several, or "all".
      k: Items of a list.
      workers: Processes that hold the bundle, each on a core of its own.
      batch_users: Users at once, which bounds the memory of a worker.

    Raises:
      ValueError: When no core is left to read and write, for which Ray would wait without end.
    """
    if not ray.is_initialized():
        ray.init()
    cores = int(ray.cluster_resources().get("CPU", 0))
    if not 1 <= workers < cores:
        raise ValueError(
            f"workers: expected 1 to {cores - 1}, one less than the {cores} cores that Ray has, "
            f"got {workers}"
        )
    ray.data.read_parquet(users).map_batches(
        Recommend,
        fn_constructor_args=(bundle, scenario, k),
        batch_format="pyarrow",
        batch_size=batch_users,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    ).write_parquet(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("bundle", "users", "out"):
        parser.add_argument(name)
    parser.add_argument("--scenario", default="all")
    for name, usual in (("k", 100), ("workers", 1), ("batch_users", 4096)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    main(**vars(parser.parse_args()))
