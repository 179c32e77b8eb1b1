"""Method table, the paper's Table 1: what kind each is, from the registry and methods' own files.

Owns its layout; nothing about a method is typed here.
"""

import importlib
import inspect

from dsmoe_jax.compare.report import formats
from dsmoe_jax.config import schema
from dsmoe_jax.models import registry

NAME = "table1"


def make() -> formats.Table:
    """One row per method and per teacher of the registry."""
    rows = []
    for name, method in registry.MATCHERS.items():
        chosen = {} if name == registry.DEFAULT_MATCHER else {"method": name}
        taught = registry.is_distilled(chosen)
        awareness = "taught by a ranker" if taught else "inner product alone"
        rows.append((name, "matching", f"{describe(method)}{_which(name)}", "yes", awareness))
    for name, ranker in registry.RANKERS.items():
        rows.append((name, "ranking", describe(ranker), "no", "user and item together"))
    note = (
        "Stage and ANN: a matching method's two towers meet in an inner product alone, which an "
        "index of item vectors can search; a ranking method sees user and item together. Methods "
        'that say "-style" rebuild a paper whose details are not public.'
    )
    return formats.Table(
        NAME,
        "Table 1: methods",
        ("", "stage", "architecture", "ANN", "user-item interaction"),
        formats.cells(rows),
        (note,),
        is_text=True,
    )


def describe(method: type[schema.MatcherConfig] | type[schema.RankerConfig]) -> str:
    """The first sentence of a method's file."""
    text = inspect.getdoc(importlib.import_module(method.__module__)) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _which(name: str) -> str:
    """Which of the methods that share a file a method is; empty where it has one of its own."""
    files = [method.__module__ for method in registry.MATCHERS.values()]
    is_shared = files.count(registry.MATCHERS[name].__module__) > 1
    return f"; this row: {registry.LABELS.get(name, name)}" if is_shared else ""
