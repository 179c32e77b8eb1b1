import dataclasses

import pytest

from dsmoe_jax.config import fields


@dataclasses.dataclass
class Section:
    experts: int = 3
    dims: tuple[int, ...] = (4, 1)
    dropout: float = 0.0
    momentum: float = 1.0
    norm: str = "bn"


def check(**changes):
    fields.check_fields(
        Section(**changes),
        "model",
        counts=("experts",),
        widths=("dims",),
        rates=("dropout",),
        shares=("momentum",),
        choices={"norm": ("bn", "none")},
    )


def test_values_at_the_edge_of_their_range_pass():
    check()
    check(experts=1, dims=(), dropout=0.999, momentum=1e-6, norm="none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0}, r"model.experts: expected a number >= 1, got 0"),
        ({"dims": (4, 0)}, r"model.dims: expected widths >= 1, got \(4, 0\)"),
        ({"dropout": 1.0}, r"model.dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"model.dropout: expected a rate in \[0, 1\), got -0.1"),
        ({"momentum": 0.0}, r"model.momentum: expected a number in \(0, 1\], got 0.0"),
        ({"momentum": 1.1}, r"model.momentum: expected a number in \(0, 1\], got 1.1"),
        ({"norm": "ln"}, r"model.norm: expected one of \('bn', 'none'\), got 'ln'"),
    ],
)
def test_value_out_of_range_is_refused_with_field_expectation_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        check(**changes)
