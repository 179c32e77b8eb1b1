"""`dsmoe index`: chooses the index of a bundle, see `indexing.py`."""

import argparse


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="dsmoe index",
        description="Builds approximate indexes of a bundle's item vectors, measures them and the "
        "exact search on known users, and keeps in the bundle what takes least CPU time at the "
        "recall that is asked for. Below some ten thousand items that is the exact search.",
        epilog="example: dsmoe index runs/kuairand-sample/bundle --min_recall 0.99",
    )
    parser.add_argument("bundle", help="folder of a bundle")
    parser.add_argument(
        "--min_recall", type=float, default=0.99, help="least share of the exact list (0.99)"
    )
    parser.add_argument("--k", type=int, default=100, help="length of the lists (100)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      ValueError: On a damaged bundle, vectors that cannot be searched, or without FAISS.
    """
    from dsmoe_jax.serving import indexing

    indexing.make_index(
        options.bundle, min_recall=options.min_recall, k=options.k, seed=options.seed
    )
