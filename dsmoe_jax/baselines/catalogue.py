"""The baselines by name: built-in ones, and those of other libraries.

Owns their names, where they are and which libraries they need. A system is a module with
`evaluate_baselines(store, config, *, seed)`, which fits on the training period, chooses on
validation queries and returns `builtin.Baseline` rows. The seed is that of all its draws and of
the queries that choose. Without its libraries it raises `ModuleNotFoundError`.
"""

import dataclasses
import importlib.metadata

from dsmoe_jax import optional

EXTRA = "baselines"


@dataclasses.dataclass(frozen=True)
class System:
    """One system.

    Attributes:
      module: Of its `evaluate_baselines`.
      label: What a table prints where it was not run; its rows have names of their own.
      libraries: Modules that an installation may lack; empty for built-in ones.
    """

    module: str
    label: str
    libraries: tuple[str, ...] = ()


SYSTEMS = {
    "references": System("dsmoe_jax.baselines.builtin", "built-in baselines"),
    "implicit": System("dsmoe_jax.baselines.implicit", "implicit ALS and BPR", ("implicit",)),
    "lightfm": System("dsmoe_jax.baselines.lightfm", "LightFM WARP", ("lightfm",)),
    "torch_rechub": System(
        "dsmoe_jax.baselines.youtube_dnn", "torch-rechub YoutubeDNN", ("torch", "torch_rechub")
    ),
}
EXTERNAL = {name: system for name, system in SYSTEMS.items() if system.libraries}


def list_missing() -> list[str]:
    """Names of the baselines of which a library is not installed here."""
    return [name for name, system in EXTERNAL.items() if optional.list_missing(system.libraries)]


def require(name: str) -> None:
    """Refuses a system before anything runs where a library of it is missing.

    Raises:
      ValueError: With the command that installs it.
    """
    system = SYSTEMS[name]
    optional.require(*system.libraries, extra=EXTRA, what=f"{system.label}: ")


def versions(name: str) -> dict[str, str]:
    """Versions of a system's libraries, by the name of what was installed."""
    distributions = importlib.metadata.packages_distributions()
    found = [name for library in SYSTEMS[name].libraries for name in distributions.get(library, ())]
    return {name: importlib.metadata.version(name) for name in found}


def components(name: str) -> list[str]:
    """Components of `numerics.VERSIONS` that decide a system's numbers."""
    return ["data", "evaluation", "baselines", *([name] if name in EXTERNAL else [])]
