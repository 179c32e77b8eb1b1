"""Multi-scenario matching in JAX: train, distil, evaluate and serve two-tower retrieval models.

    import dsmoe_jax

    model = dsmoe_jax.fit(log, scenario="page", positive="action == buy")
    model.recommend(["user 1", "user 2"], scenario="search", k=10)
    model.save("bundle")
    retriever = dsmoe_jax.load("bundle")
    experiment = dsmoe_jax.load_config("kuairand:sample", seed=1)
    model = dsmoe_jax.train(experiment, "runs/sample")
    print(model.results["macro"])

JAX is imported with the first use of a name.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from dsmoe_jax.run.api import Model, evaluate, fit, load, load_config, prepare, train
    from dsmoe_jax.serving.retriever import Retriever

__version__ = "0.1.0"
__all__ = ["Model", "Retriever", "evaluate", "fit", "load", "load_config", "prepare", "train"]


def __getattr__(name: str) -> typing.Any:
    if name not in __all__:
        raise AttributeError(f"module 'dsmoe_jax' has no attribute {name!r}")
    room = "serving.retriever" if name == "Retriever" else "run.api"
    return getattr(importlib.import_module(f"dsmoe_jax.{room}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
