"""Multi-scenario matching in JAX: train, distil, evaluate and serve two-tower retrieval models.

    import dsmoe_jax

    model = dsmoe_jax.fit(log, scenario="page", positive="action == buy")
    experiment = dsmoe_jax.load_config("kuairand:sample", seed=1)
    model = dsmoe_jax.train(experiment, "runs/sample")
    print(model.results["macro"])

JAX is imported with the first use of a name.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from dsmoe_jax.run.api import Model, evaluate, fit, load, load_config, prepare, train

__version__ = "0.1.0"
__all__ = ["Model", "evaluate", "fit", "load", "load_config", "prepare", "train"]


def __getattr__(name: str) -> typing.Any:
    if name not in __all__:
        raise AttributeError(f"module 'dsmoe_jax' has no attribute {name!r}")
    return getattr(importlib.import_module("dsmoe_jax.run.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
