import dataclasses

import pytest

from dsmoe_jax.config import fingerprint, load


@pytest.fixture
def experiment():
    return load.load_experiment("configs/kuairand.py", "sample")


def test_dense_updates_leave_nothing_of_their_section(experiment):
    before = fingerprint.config_hash(experiment)
    experiment.optim.min_rows = 7
    assert fingerprint.config_hash(experiment) == before
    experiment.optim.embedding = "row_sparse"
    assert fingerprint.config_hash(experiment) != before
    assert fingerprint.of_stage(experiment, stage="student")["optim.min_rows"] == 7


def test_limits_of_time_and_the_teachers_seed_are_named_only_where_there_are_any(experiment):
    before = fingerprint.config_hash(experiment)
    teacher, student = (fingerprint.of_stage(experiment, stage=s) for s in ("teacher", "student"))
    assert before == "fccdb861171c"  # that of the published records
    experiment.train.max_minutes = experiment.teacher.max_minutes = 3.0
    assert fingerprint.config_hash(experiment) != before
    # A limit does not keep a run from resuming.
    assert fingerprint.of_stage(experiment, stage="teacher") == teacher
    assert fingerprint.of_stage(experiment, stage="student") == student


def test_students_of_several_seeds_share_a_teacher_of_one(experiment):
    first = fingerprint.of_stage(experiment, stage="teacher")
    experiment.seed, experiment.teacher.seed = 1, 0
    assert fingerprint.of_stage(experiment, stage="teacher") == first
    assert fingerprint.of_stage(experiment, stage="student")["seed"] == 1
    assert fingerprint.of_stage(experiment, stage="student")["teacher.seed"] == 0
    assert (experiment.stage_seed("teacher"), experiment.stage_seed("student")) == (0, 1)


def test_an_encoder_of_the_history_is_the_students_and_named_where_it_is_not_the_mean(experiment):
    before = fingerprint.config_hash(experiment)
    teacher = fingerprint.of_stage(experiment, stage="teacher")
    assert "features.history_encoder" not in fingerprint.of_stage(experiment, stage="student")
    experiment.features.history_encoder = "hstu"
    assert fingerprint.config_hash(experiment) != before
    assert fingerprint.of_stage(experiment, stage="teacher") == teacher
    named = fingerprint.of_stage(experiment, stage="student")
    assert named["features.history_encoder"] == "hstu"


def test_ranks_that_nobody_asks_for_are_not_named(experiment):
    before = fingerprint.config_hash(experiment)
    experiment.eval.mrr_depth = 2500
    assert fingerprint.config_hash(experiment) != before
    experiment.eval.mrr_depth = 0
    assert fingerprint.config_hash(experiment) == before == "fccdb861171c"


def test_exposures_that_nobody_asks_for_are_not_named(experiment):
    named = fingerprint.of_stage(experiment, stage="teacher")
    experiment.data.exposures = True
    assert fingerprint.config_hash(experiment) != "fccdb861171c"
    assert fingerprint.of_stage(experiment, stage="teacher") != named
    experiment.data.exposures = False
    assert fingerprint.config_hash(experiment) == "fccdb861171c"


def test_values_that_had_other_names_are_hashed_by_them(experiment):
    assert experiment.eval.remove_seen == "positives"
    hashes = {}
    for rule in ("positives", "none", "shown"):
        experiment.eval.remove_seen = rule
        hashes[rule] = fingerprint.config_hash(experiment)
    assert hashes["positives"] == "fccdb861171c"
    assert hashes["none"] == "87b86365c5b7"
    assert len(set(hashes.values())) == 3


def test_products_are_named_only_where_they_are_not_of_float32(experiment):
    assert "model.product_dtype" not in fingerprint.of_stage(experiment, stage="student")
    before = fingerprint.config_hash(experiment)
    experiment.model = dataclasses.replace(experiment.model, product_dtype="bfloat16")
    named = fingerprint.of_stage(experiment, stage="student")
    assert named["model.product_dtype"] == "bfloat16"
    assert fingerprint.config_hash(experiment) != before
    # The teacher has no such products.
    assert "model.product_dtype" not in fingerprint.of_stage(experiment, stage="teacher")
