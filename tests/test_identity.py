import dataclasses

import pytest

from dsmoe_jax import identity, overrides


@pytest.fixture
def experiment():
    return overrides.load_experiment("configs/kuairand.py", "sample")


def test_dense_updates_leave_nothing_of_their_section(experiment):
    before = identity.config_hash(experiment)
    experiment.optim.min_rows = 7
    assert identity.config_hash(experiment) == before
    experiment.optim.embedding = "row_sparse"
    assert identity.config_hash(experiment) != before
    assert identity.of_stage(experiment, stage="student")["optim.min_rows"] == 7


def test_products_are_named_only_where_they_are_not_of_float32(experiment):
    assert "model.product_dtype" not in identity.of_stage(experiment, stage="student")
    before = identity.config_hash(experiment)
    experiment.model = dataclasses.replace(experiment.model, product_dtype="bfloat16")
    named = identity.of_stage(experiment, stage="student")
    assert named["model.product_dtype"] == "bfloat16"
    assert identity.config_hash(experiment) != before
    # The teacher has no such products.
    assert "model.product_dtype" not in identity.of_stage(experiment, stage="teacher")
