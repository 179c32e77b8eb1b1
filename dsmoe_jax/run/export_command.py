"""`dsmoe export`: the bundle of a run, see `export.py`."""

import argparse
import pathlib


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="dsmoe export",
        description="Writes the serving bundle of a trained run: the best student's towers, item "
        "vectors, vocabularies and what is known of users, as plain arrays with hashes.",
        epilog="example: dsmoe export runs/kuairand-sample --out bundles/today",
    )
    parser.add_argument("workdir", type=pathlib.Path, help="folder of a run with a trained student")
    parser.add_argument(
        "--out", type=pathlib.Path, help="the bundle's folder; WORKDIR/bundle by default"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      ValueError: When there is no trained run, or the folder holds something else.
    """
    from dsmoe_jax.run import export

    export.write(export.open_stages(options.workdir), options.out)
