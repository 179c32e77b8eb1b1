"""Versions of the components that decide numbers: one is raised where its numbers change.

A record of the comparison names the versions that it was made with, so that code may move and
become faster and the record stay valid. `tests/golden` holds the numbers of each component's
version, a change of which it refuses where the version stays. Baselines of other libraries have no
numbers there: their version is raised by hand, where how they are asked changes.
"""

import hashlib
import pathlib
from collections.abc import Iterable

VERSIONS: dict[str, int] = {
    # Statistics, constants, the order of batches and what a batch holds.
    "data": 1,
    # The step, losses, negatives, optimisers and averages.
    "training": 1,
    # Protocol and metrics.
    "evaluation": 1,
    # The built-in baselines.
    "baselines": 1,
    # Matchers.
    "dsmoe": 1,
    "dsmoe_plus": 1,
    "ican": 1,
    "adin": 1,
    "sass": 1,
    "m5": 1,
    "perscen": 1,
    "dssm": 1,
    "dssm_per_scenario": 1,
    "fism": 1,
    "mind": 1,
    "mmoe": 1,
    "hstu": 1,
    "fuxi": 1,
    "fuxi_mme": 1,
    # Rankers.
    "mmoe_din": 1,
    "sap": 1,
    "ple": 1,
    "hmoe": 1,
    "hinet": 1,
    "m3oe": 1,
    "star": 1,
    "din": 1,
    "fused": 1,
    # Baselines of other libraries.
    "implicit": 1,
    "lightfm": 1,
    "torch_rechub": 1,
}


def of(components: Iterable[str]) -> dict[str, int]:
    """The versions of some components, by name in alphabetical order.

    Raises:
      KeyError: When one of them has no version.
    """
    return {name: VERSIONS[name] for name in sorted(set(components))}


def code_hash() -> str:
    """Twelve hexadecimal digits of the package's source: where a record is from, never compared."""
    package = pathlib.Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
