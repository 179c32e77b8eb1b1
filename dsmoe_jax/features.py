"""Feature specifications: typed descriptions of the columns that a model receives.

Owns the description only. The values are in `batch.Users` and `batch.Items`, in the order of the
tuples here. Ids are dense, 0 is unknown or padding, and `num_ids` counts the 0.
"""

import dataclasses
import difflib
from typing import Any

from dsmoe_jax.config import schema

# Every scenario's own history side by side, for methods that read them all.
SCENARIO_HISTORIES = "scenario_histories"

# What a tower's input holds of the history of all scenarios: the mean of its events, or the last
# output of a causal encoder.
HISTORY = "history"
HISTORY_ENCODERS = schema.HISTORY_ENCODERS

# What users were shown without a positive, where the store holds it.
EXPOSURES = "exposures"

# Ids and row numbers are int32, tables are padded to a multiple of 1,024 rows, and a row past the
# last one must have a number too.
MAX_IDS = 2**31 - 1024


@dataclasses.dataclass(frozen=True)
class SparseFeature:
    """One categorical column; ids in [0, num_ids), 0 = unknown."""

    name: str
    num_ids: int


@dataclasses.dataclass(frozen=True)
class DenseFeature:
    """One real column, standardised by data preparation; 0 is the training mean or a null."""

    name: str


@dataclasses.dataclass(frozen=True)
class BagFeature:
    """A multi-valued categorical column, right-padded with 0 to `max_len` ids per row."""

    name: str
    num_ids: int
    max_len: int


# Features of a row by side and kind, as `FeatureSpec` holds them.
GROUPS: dict[str, Any] = {
    f"{side}_{name}": kind
    for side in ("user", "item")
    for name, kind in (("sparse", SparseFeature), ("dense", DenseFeature), ("bags", BagFeature))
}


@dataclasses.dataclass(frozen=True)
class SequenceFeature:
    """A user's chronological events, each described by ids of item-side fields.

    Attributes:
      name: `history` (clicks in all scenarios), `scenario_history` (clicks in the example's own
        scenario) or a data set's behaviour log.
      fields: Item sparse features whose tables embed the events: `("item_id",)` for clicks,
        `("category", "brand")` for a log that holds no items.
      max_len: Longest window a model sees, most recent events, in chronological order.
      per_scenario: Whether this is one window per scenario, end to end: scenario s has positions
        [s * L, (s + 1) * L) with L = max_len / S, each padded on its right. Embedded, but no part
        of a tower's input: a method that asks for it decides what to do with it.
    """

    name: str
    fields: tuple[str, ...]
    max_len: int
    per_scenario: bool = False


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """All features of a store, or of the part of it that a run uses.

    `item_sparse[0]` is always `item_id`: ids in [0, num_items), one per row of the corpus, row 0
    being padding that is never a candidate.

    Attributes:
      scenarios: Scenario names; a scenario id in [0, S) indexes them.
      embedding_dim: Width E of every field's embedding (paper: 16).
      history_encoder: One of `HISTORY_ENCODERS`.
    """

    scenarios: tuple[str, ...]
    user_sparse: tuple[SparseFeature, ...]
    user_dense: tuple[DenseFeature, ...]
    user_bags: tuple[BagFeature, ...]
    item_sparse: tuple[SparseFeature, ...]
    item_dense: tuple[DenseFeature, ...]
    item_bags: tuple[BagFeature, ...]
    sequences: tuple[SequenceFeature, ...]
    embedding_dim: int = 16
    history_encoder: str = "mean"

    def __post_init__(self) -> None:
        if not self.item_sparse or self.item_sparse[0].name != "item_id":
            raise ValueError("item_sparse: expected the first item feature to be 'item_id'")
        groups = (self.user_sparse, self.user_bags, self.item_sparse, self.item_bags)
        for feature in (feature for group in groups for feature in group):
            if feature.num_ids > MAX_IDS:
                raise ValueError(
                    f"feature {feature.name!r}: expected at most {MAX_IDS:,} ids, which int32 can "
                    f"number, got {feature.num_ids:,}; hash them into fewer"
                )
        if self.history_encoder not in HISTORY_ENCODERS:
            raise ValueError(
                f"features.history_encoder: expected one of {HISTORY_ENCODERS}, got "
                f"{self.history_encoder!r}"
            )
        if self.history_encoder != "mean" and HISTORY not in [s.name for s in self.sequences]:
            raise ValueError(
                f"features.history_encoder: expected 'mean' without the sequence {HISTORY!r}, got "
                f"{self.history_encoder!r}; leave it out of features.exclude"
            )
        fields = {feature.name for feature in self.item_sparse}
        for sequence in self.sequences:
            unknown = [name for name in sequence.fields if name not in fields]
            if unknown:
                raise ValueError(
                    f"sequence {sequence.name!r}: expected fields among {sorted(fields)}, "
                    f"got {unknown}"
                )

    @property
    def pooled_sequences(self) -> tuple[SequenceFeature, ...]:
        """The sequences whose means are part of the user tower's input."""
        return tuple(sequence for sequence in self.sequences if not sequence.per_scenario)

    @property
    def num_scenarios(self) -> int:
        """S."""
        return len(self.scenarios)

    @property
    def num_items(self) -> int:
        """V + 1: rows of the corpus, the padding row 0 included."""
        return self.item_sparse[0].num_ids

    def to_json(self) -> dict[str, Any]:
        """Nested plain values for the manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "FeatureSpec":
        """The inverse of `to_json`."""
        groups: dict[str, Any] = {
            group: tuple(kind(**feature) for feature in tree[group])
            for group, kind in GROUPS.items()
        }
        sequences = [{**f, "fields": tuple(f["fields"])} for f in tree["sequences"]]
        return cls(
            scenarios=tuple(tree["scenarios"]),
            **groups,
            sequences=tuple(SequenceFeature(**sequence) for sequence in sequences),
            embedding_dim=tree.get("embedding_dim", cls.embedding_dim),
            history_encoder=tree.get("history_encoder", cls.history_encoder),
        )


def item_ids_alone(spec: FeatureSpec, sequences: tuple[SequenceFeature, ...]) -> FeatureSpec:
    """The features of a model that reads sequences of items and their ids and nothing else."""
    empty: dict[str, Any] = dict.fromkeys(GROUPS, ())
    groups = {**empty, "item_sparse": spec.item_sparse[:1]}
    return FeatureSpec(scenarios=spec.scenarios, sequences=sequences, **groups)


def select(
    spec: FeatureSpec,
    *,
    exclude: tuple[str, ...],
    history_length: int,
    scenario_history_length: int,
    embedding_dim: int = FeatureSpec.embedding_dim,
    scenario_histories: bool = False,
    history_encoder: str = FeatureSpec.history_encoder,
) -> FeatureSpec:
    """The part of a store's features that a run uses, with its sequence lengths.

    A model sees `scenario_history_length` events of `scenario_history` and `history_length` of
    every other sequence. `item_id` stays, since histories are embedded by its table.
    `scenario_histories` adds `SCENARIO_HISTORIES`, with `scenario_history_length` events of every
    scenario; `exclude` does not apply to it.

    Raises:
      ValueError: When a name in `exclude` is no feature that can be left out.
    """
    names = [f.name for group in GROUPS for f in getattr(spec, group)]
    names += [sequence.name for sequence in spec.sequences]
    names.remove("item_id")
    for name in exclude:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f"; nearest: {nearest[0]!r}" if nearest else ""
            raise ValueError(
                f"features.exclude: {name!r} is no feature of this store that can be left out{hint}"
            )
    kept = {
        group: tuple(f for f in getattr(spec, group) if f.name not in exclude) for group in GROUPS
    }
    lengths = {"scenario_history": scenario_history_length}
    sequences = tuple(
        dataclasses.replace(sequence, max_len=lengths.get(sequence.name, history_length))
        for sequence in spec.sequences
        if sequence.name not in exclude
    )
    if scenario_histories:
        total = len(spec.scenarios) * scenario_history_length
        sequences += (SequenceFeature(SCENARIO_HISTORIES, ("item_id",), total, per_scenario=True),)
    return dataclasses.replace(
        spec,
        sequences=sequences,
        embedding_dim=embedding_dim,
        history_encoder=history_encoder,
        **kept,
    )
