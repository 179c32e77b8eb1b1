import dataclasses
import functools
import math

import pytest

from dsmoe_jax.config import fields, load, schema
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import fused, star
from tests import tiny_features


@dataclasses.dataclass
class Section:
    experts: int = fields.field(3, at_least=1)
    dims: tuple[int, ...] = fields.field((4, 1), at_least=1)
    layers: tuple[int, ...] = fields.field((4,), at_least=1, nonempty=True)
    cutoffs: tuple[int, ...] = fields.field((5, 10), at_least=1, ascending=True)
    dropout: float = fields.rate()
    momentum: float = fields.share(1.0)
    decay: float = fields.field(0.9, above=0, below=1)
    norm: str = fields.field("bn", choices=("bn", "none"))
    anything: object = None


def test_values_at_the_edge_of_their_range_pass():
    fields.validate(Section())
    edge = Section(1, (), (1,), (1,), 0.999, 1e-6, 0.001, "none", math.nan)
    fields.validate(edge)
    fields.validate(Section(dims=[3]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0}, r"model.experts: expected a number >= 1, got 0"),
        ({"experts": True}, r"model.experts: expected a number >= 1, got True"),
        ({"experts": "4"}, r"model.experts: expected a number >= 1, got '4'"),
        ({"experts": math.inf}, r"model.experts: expected a number >= 1, got inf"),
        ({"dims": (4, 0)}, r"model.dims: expected widths >= 1, got \(4, 0\)"),
        ({"dims": 4}, r"model.dims: expected widths >= 1, got 4"),
        ({"layers": ()}, r"model.layers: expected at least one width, got none"),
        ({"cutoffs": ()}, r"model.cutoffs: expected ascending distinct cut-offs >= 1, got \(\)"),
        ({"cutoffs": (5, 5)}, r"model.cutoffs: expected ascending distinct cut-offs >= 1, got"),
        ({"cutoffs": (0, 5)}, r"model.cutoffs: expected ascending distinct cut-offs >= 1, got"),
        ({"dropout": 1.0}, r"model.dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"model.dropout: expected a rate in \[0, 1\), got -0.1"),
        ({"dropout": math.nan}, r"model.dropout: expected a rate in \[0, 1\), got nan"),
        ({"momentum": 0.0}, r"model.momentum: expected a number in \(0, 1\], got 0.0"),
        ({"momentum": 1.1}, r"model.momentum: expected a number in \(0, 1\], got 1.1"),
        ({"decay": 1.0}, r"model.decay: expected a number in \(0, 1\), got 1.0"),
        ({"norm": "ln"}, r"model.norm: expected one of \('bn', 'none'\), got 'ln'"),
    ],
)
def test_value_out_of_range_is_refused_with_field_expectation_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        fields.validate(Section(**changes), "model")


def test_another_default_keeps_the_declaration():
    @dataclasses.dataclass
    class Child(Section):
        experts: int = 5
        norm: str = fields.field("ln", choices=("ln",))

    fields.validate(Child())
    with pytest.raises(ValueError, match="experts: expected a number >= 1, got 0"):
        fields.validate(Child(experts=0))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.batch_size", 0, "train.batch_size: expected a number >= 1, got 0"),
        ("train.beta_2", 1.0, r"train.beta_2: expected a number in \(0, 1\), got 1.0"),
        ("eval.k", (100, 50), "eval.k: expected ascending distinct cut-offs >= 1, got"),
        ("eval.backend", "annoy", r"eval.backend: expected one of \('exact', 'faiss'\), got"),
        ("features.history_encoder", "gru", "features.history_encoder: expected one of .* got"),
        ("model.rank", 0, "model.rank: expected a number >= 1, got 0"),
        ("teacher.model.num_experts", 0, "teacher.model.num_experts: expected a number >= 1"),
        ("data.test_days", 0, "data.test_days: expected a number >= 1, got 0"),
        ("seed", -1, "seed: expected a number >= 0, got -1"),
    ],
)
def test_an_experiment_checks_every_section(path, value, message):
    experiment = load.load_experiment("configs/kuairand.py", "sample")
    *holders, name = path.split(".")
    setattr(functools.reduce(getattr, holders, experiment), name, value)
    with pytest.raises(ValueError, match=message):
        experiment.validate()


def test_members_of_an_ensemble_are_checked_by_name():
    experiment = load.load_experiment("configs/kuairand.py", "sample,teacher=fused")
    assert isinstance(experiment.teacher.model, fused.FusedConfig)
    experiment.teacher.model.members = {"star": star.STARConfig(aux_dims=())}
    with pytest.raises(ValueError, match=r"teacher.model.members.star.aux_dims: expected at least"):
        experiment.validate()


def test_a_model_does_not_follow_later_changes_of_its_configuration():
    config = dsmoe.DSMOEConfig(rank=2)
    model, same = (config.make(tiny_features.make_spec()) for _ in range(2))
    config.rank = 3
    assert model.cfg.rank == 2
    assert model == same and hash(model) == hash(same)
    assert model != config.make(tiny_features.make_spec())
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.cfg.rank = 3


def test_a_frozen_copy_is_of_its_class_and_holds_tuples():
    frozen = fields.freeze(Section(dims=[3, 2]))
    assert isinstance(frozen, Section) and frozen.dims == (3, 2)
    assert hash(frozen) == hash(fields.freeze(Section(dims=(3, 2))))


def test_a_method_defined_elsewhere_needs_no_declarations():
    @dataclasses.dataclass
    class PlainConfig(schema.MatcherConfig):
        width: int = 3

        def make(self, spec):
            return self.build(dict, spec)

    assert PlainConfig().make("features")["cfg"].width == 3
