"""Measurements in this process, and a configuration of few rows and a small model for them."""

import argparse
import pathlib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_config(folder: pathlib.Path) -> str:
    path = folder / "small.py"
    path.write_text(
        "from dsmoe_jax.config import load\n"
        "\n"
        "\n"
        'def get_config(variant=""):\n'
        f'    path = "{ROOT}/configs/kuairand.py"\n'
        '    made = load.load_experiment(path, "synthetic,no_distill")\n'
        "    made.data.num_users, made.data.num_items = 300, 250\n"
        "    made.data.num_impressions = 12_000\n"
        "    made.data.validation_days = made.data.test_days = 5\n"
        "    made.model.hidden_dim = made.model.output_dim = 8\n"
        "    made.train.batch_size, made.train.steps_per_report = 64, 1\n"
        "    return made\n"
    )
    return str(path)


def parse(module: Any, *flags: str) -> argparse.Namespace:
    """Flags of a measurement."""
    parser = argparse.ArgumentParser()
    module.add_options(parser)
    return parser.parse_args(flags)


def measure(module: Any, *flags: str) -> dict[str, Any]:
    """What a measurement finds with these flags."""
    return module.measure(parse(module, *flags))
