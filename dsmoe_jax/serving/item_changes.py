"""Changes to items that follow from one bundle to the next: raw features, and what was removed.

Owns which of them hold for a bundle that takes the place of another, see `ItemChanges.apply`. What
they do to a catalogue is `catalogue.py`'s; changes that a bundle keeps on disk are its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dsmoe_jax.serving import catalogue as catalogue_lib
from dsmoe_jax.serving import retriever as retriever_lib
from dsmoe_jax.serving import wire

_WHERE = f"items: {catalogue_lib.ITEM}"


class Applied(NamedTuple):
    """What changes did to a bundle.

    Attributes:
      upserted: Items that were added or replaced.
      removed: Items that were removed.
      left_out: Items that the bundle cannot hold, each with the reason.
    """

    upserted: int
    removed: int
    left_out: list[str]


class ItemChanges:
    """What was done last to each item that changed."""

    def __init__(self) -> None:
        # By raw id as text, so that an id is one whether a bundle's ids are integers or texts;
        # in the order of the last change. None where it was removed.
        self._last: dict[str, dict[str, Any] | None] = {}

    def __len__(self) -> int:
        """Items that changed."""
        return len(self._last)

    def upsert(
        self, retriever: retriever_lib.Retriever, items: Sequence[Mapping[str, Any]]
    ) -> None:
        """Remembers items by their raw features, which the retriever has taken."""
        for item in items:
            self._put(retriever, item[catalogue_lib.ITEM], dict(item))

    def remove(self, retriever: retriever_lib.Retriever, raw_ids: Sequence[Any]) -> None:
        """Remembers that items were removed, by raw ids that the retriever has taken."""
        for raw in raw_ids:
            self._put(retriever, raw, None)

    def update(self, later: "ItemChanges") -> None:
        """Adds changes that were made after these."""
        for key, given in later._last.items():
            self._last.pop(key, None)
            self._last[key] = given

    def beyond(self, retriever: retriever_lib.Retriever) -> "ItemChanges":
        """Those that a bundle says nothing of: all removals, and items whose ids it has not."""
        found = ItemChanges()
        row_N = retriever.catalogue.rows(list(self._last), "items").tolist()
        for (key, given), row in zip(self._last.items(), row_N, strict=True):
            if given is None or not row:
                found._last[key] = given
        return found

    def apply(self, retriever: retriever_lib.Retriever) -> Applied:
        """Makes these changes to a bundle that nobody asks yet.

        Items are encoded anew, by its item tower. Features that it does not have are left out; an
        item that it cannot hold all the same is left out and told.
        """
        known = retriever.encoder.item_features
        # A bundle of integers takes "7" and "07" for one, and any other text for none.
        plain = retriever.encoder.items.plain
        last = {plain(key, _WHERE) or key: (key, given) for key, given in self._last.items()}
        items = [
            {name: value for name, value in given.items() if name in known}
            for _, given in last.values()
            if given is not None
        ]
        left_out = _upsert(retriever, items)
        found = retriever.catalogue
        gone = [key for key, given in last.values() if given is None]
        row_N = found.rows(gone, "items").tolist()
        there = [
            raw for raw, row in zip(gone, row_N, strict=True) if row and row not in found.removed
        ]
        if there:
            retriever.remove_items(there)
        return Applied(len(items) - len(left_out), len(there), left_out)

    def _put(
        self, retriever: retriever_lib.Retriever, raw: Any, given: dict[str, Any] | None
    ) -> None:
        key = str(retriever.encoder.items.plain(raw, _WHERE))
        self._last.pop(key, None)
        self._last[key] = given


def _upsert(retriever: retriever_lib.Retriever, items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Adds items; those that are refused are found by halves, and their reasons returned."""
    if not items:
        return []
    try:
        retriever.upsert_items(items)
    except ValueError as error:
        if len(items) == 1:
            return [f"{items[0][catalogue_lib.ITEM]}: {wire.one_line(error)}"]
        half = len(items) // 2
        return _upsert(retriever, items[:half]) + _upsert(retriever, items[half:])
    return []
