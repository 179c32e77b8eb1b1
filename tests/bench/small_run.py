"""A configuration file of few synthetic rows and a small model, for measurements of whole runs."""

import pathlib

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
