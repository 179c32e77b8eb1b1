"""Standards: moments of numbers and bounds of ranges that one store takes over from another.

A model that goes on from an earlier store's must be given inputs that mean the same: a number in
that store's units, a range with that store's bounds.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from dsmoe_jax.config import fingerprint

KEY = "standard"


class Standard(NamedTuple):
    """What is taken over; empty for a store that stands for itself.

    Attributes:
      moments: By dense feature, as `entities.EncodedTable.moments`.
      edges: By feature of ranges, their bounds.
    """

    moments: Mapping[str, Mapping[str, Any]] = {}
    edges: Mapping[str, list[float]] = {}

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that name the content."""
        return fingerprint.of_record(self._asdict(), own="")


def of_manifest(manifest: Mapping[str, Any]) -> Standard:
    """The standard of a store."""
    forms = manifest.get("raw_forms", {})
    edges = {name: form["edges"] for name, form in forms.items() if "edges" in form}
    return Standard(manifest.get("dense", {}), edges)


def read(path: str) -> Standard:
    """The standard in a JSON file, under the key `standard`; an empty one where no file is named.

    Raises:
      ValueError: When the file is missing or holds something else.
    """
    if not path:
        return Standard()
    try:
        found = json.loads(pathlib.Path(path).expanduser().read_text(encoding="utf-8"))[KEY]
        return Standard(dict(found["moments"]), dict(found["edges"]))
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"data.standard_file: expected a file of a run that goes on from another, got {path} "
            f"({type(error).__name__}); leave the field to --continue_from"
        ) from error
