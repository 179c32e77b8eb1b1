"""Training of DSMOE on the packaged rows of KuaiRand-Pure.

    python examples/quickstart.py

Ten minutes on two quiet cores; the same command continues or reuses what is there.
"""

from typing import Any

import dsmoe_jax


def main(
    workdir: str = "runs/quickstart", config: str = "kuairand:sample", **fields: Any
) -> dsmoe_jax.Model:
    """Trains, and prints how many of each user's clicks are among the items retrieved."""
    experiment = dsmoe_jax.load_config(config, **fields)
    model = dsmoe_jax.train(experiment, workdir, progress=True)
    for scenario, row in model.results["scenarios"].items():
        print(f"{scenario}: recall@50 {row['recall@50']:.3f} of {row['queries']} queries")
    return model


if __name__ == "__main__":
    main()
