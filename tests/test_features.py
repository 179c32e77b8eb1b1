import dataclasses
import functools

import pytest

from dsmoe_jax import features
from tests import tiny


def test_spec_survives_json():
    spec = tiny.make_spec(max_len=7)
    assert features.FeatureSpec.from_json(spec.to_json()) == spec


def test_a_spec_with_a_window_per_scenario_survives_json():
    spec = features.select(
        tiny.make_spec(),
        exclude=(),
        history_length=9,
        scenario_history_length=4,
        scenario_histories=True,
    )
    assert spec.sequences[-1].per_scenario
    assert features.FeatureSpec.from_json(spec.to_json()) == spec


def test_a_spec_from_before_there_were_encoders_has_the_mean():
    tree = tiny.make_spec().to_json()
    del tree["history_encoder"]
    assert features.FeatureSpec.from_json(tree) == tiny.make_spec()
    encoded = dataclasses.replace(tiny.make_spec(), history_encoder="hstu")
    assert features.FeatureSpec.from_json(encoded.to_json()) == encoded


def test_an_encoder_needs_a_known_name_and_a_history():
    select = functools.partial(
        features.select, tiny.make_spec(), history_length=9, scenario_history_length=4
    )
    assert select(exclude=()).history_encoder == "mean"
    assert select(exclude=(), history_encoder="fuxi").history_encoder == "fuxi"
    with pytest.raises(ValueError, match=r"features.history_encoder: expected one of .*'gru'"):
        select(exclude=(), history_encoder="gru")
    with pytest.raises(ValueError, match=r"expected 'mean' without the sequence 'history', got 'f"):
        select(exclude=("history",), history_encoder="fuxi")


def test_select_leaves_out_and_sets_lengths():
    spec = features.select(
        tiny.make_spec(),
        exclude=("user_id", "tag"),
        history_length=9,
        scenario_history_length=4,
        embedding_dim=8,
    )
    assert [f.name for f in spec.user_sparse] == ["age"]
    assert spec.item_bags == ()
    assert [(s.name, s.max_len) for s in spec.sequences] == [
        ("history", 9),
        ("scenario_history", 4),
    ]
    assert spec.embedding_dim == 8


@pytest.mark.parametrize(
    ("name", "hint"), [("user_idd", "nearest: 'user_id'"), ("item_id", "can be left out")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name, hint):
    with pytest.raises(ValueError, match=hint):
        features.select(
            tiny.make_spec(), exclude=(name,), history_length=1, scenario_history_length=1
        )


def test_a_sequence_of_unknown_fields_is_refused():
    with pytest.raises(ValueError, match="expected fields among"):
        features.FeatureSpec(
            scenarios=("A",),
            user_sparse=(),
            user_dense=(),
            user_bags=(),
            item_sparse=(features.SparseFeature("item_id", 3),),
            item_dense=(),
            item_bags=(),
            sequences=(features.SequenceFeature("history", ("brand",), 5),),
        )


def test_more_ids_than_int32_can_number_are_refused():
    spec = tiny.make_spec()
    users = (features.SparseFeature("user_id", 2**31 - 1024), *spec.user_sparse[1:])
    dataclasses.replace(spec, user_sparse=users)
    users = (features.SparseFeature("user_id", 2**31 - 1023), *spec.user_sparse[1:])
    message = r"feature 'user_id': expected at most 2,147,482,624 ids.*got 2,147,482,625"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(spec, user_sparse=users)
