"""What a variant's tokens choose."""

import inspect
import sys

import pytest

from dsmoe_jax.config import fingerprint
from dsmoe_jax.config import load as overrides
from dsmoe_jax.models import registry


def load(variant):
    return overrides.load_experiment("configs/kuairand.py", variant)


@pytest.mark.parametrize("name", registry.RANKERS)
def test_a_teacher_is_chosen_by_its_name(name):
    teacher = load(f"sample,teacher={name}").teacher.model
    assert type(teacher) is registry.RANKERS[name]


def test_the_fused_teacher_averages_registered_rankers():
    teacher = registry.make_teacher({"teacher": "teacher=fused"})
    assert {name: type(member) for name, member in teacher.members.items()} == {
        name: registry.RANKERS[name] for name in registry.FUSED_MEMBERS
    }


def test_the_members_of_a_teacher_are_listed_by_name():
    chosen = {"teacher": "teacher=star"}
    star = registry.make_teacher(chosen)
    assert registry.list_rankers(chosen, star) == {"star": star}
    default = registry.make_teacher({})
    assert registry.list_rankers({}, default) == {registry.DEFAULT_RANKER: default}


@pytest.mark.parametrize("fields", ["", ",teacher_fields=same"])
def test_every_teacher_of_a_configuration_sees_the_same(fields):
    switches = ("use_log_prior", "collaborative")
    seen = {}
    for name in registry.RANKERS:
        teacher = load(f"sample,teacher={name}{fields}").teacher.model
        for member, ranker in registry.list_rankers(
            {"teacher": f"teacher={name}"}, teacher
        ).items():
            if member != "sap":
                seen[name, member] = tuple(getattr(ranker, switch) for switch in switches)
    more = not fields
    assert set(seen.values()) == {(more, more)} and len(seen) == 10


@pytest.mark.parametrize("fields", ["", ",teacher_fields=same"])
def test_teachers_drop_the_same_share_of_their_input_unless_a_search_found_another(fields):
    found = {"din": 0.0, "sap": 0.0, "hmoe": 0.1}
    for name in registry.RANKERS:
        teacher = load(f"sample,teacher={name}{fields}").teacher.model
        for member, ranker in registry.list_rankers(
            {"teacher": f"teacher={name}"}, teacher
        ).items():
            assert ranker.input_dropout == found.get(member, 0.3), (name, member)


def test_members_of_an_ensemble_have_fields_of_their_own():
    experiment = load("sample,teacher=fused")
    flat = fingerprint.flatten(fingerprint.as_dict(experiment))
    assert flat["teacher.model.members.ple.class"] == "PLEConfig"
    assert "teacher.model.members.star.hidden_dims" in overrides.field_names(experiment)


def test_what_a_ranker_wants_of_training_is_not_an_ensembles():
    alone, fused, default = (
        load(f"sample{more}") for more in (",teacher=star", ",teacher=fused", "")
    )
    assert fused.teacher.model.members["star"] == alone.teacher.model
    assert fused.teacher.model.members["mmoe_din"] == default.teacher.model
    assert alone.teacher.learning_rate != fused.teacher.learning_rate
    assert fused.teacher.learning_rate == default.teacher.learning_rate


def test_values_for_a_student_without_teacher_are_its_own_and_stand_nowhere_else():
    tuned, ablated = (load(f"sample,no_distill{more}") for more in (",undistilled", ""))
    assert tuned.loss.distill_weight == ablated.loss.distill_weight == 0
    assert tuned.model != ablated.model == load("sample").model
    for variant in ("sample,undistilled", "no_distill,undistilled", "sample,mmoe,undistilled"):
        with pytest.raises(overrides.UsageError, match="expected 'undistilled' beside"):
            load(variant)


def test_with_the_inputs_plus_dsmoe_begins_with_fism_and_others_stay_themselves():
    own = load("sample,plus")
    assert type(own.model) is registry.MATCHERS[registry.PLUS_MATCHER]
    assert own.loss.distill_weight == 0
    for variant, plain in (
        ("sample,plus,dssm", "sample,dssm"),
        ("sample,fism,plus", "sample,fism"),
    ):
        found, usual = load(variant), load(plain)
        assert type(found.model) is type(usual.model)
        assert found.data.exposures and not usual.data.exposures
        assert found.features.history_length > usual.features.history_length
    assert load("sample,plus,dssm").model.known_prior
    assert not load("sample,plus,fism").model.known_prior  # It has the prior anyway.
    with pytest.raises(overrides.UsageError, match="'no_sap' is an ablation of dsmoe, got it with"):
        load("sample,plus,no_sap")
    assert own.model.teachers == 0
    taught = load("sample,plus,taught")
    assert taught.model.teachers == registry.TEACHERS == 3
    assert taught.train.learning_rate > own.train.learning_rate
    with pytest.raises(overrides.UsageError, match="expected 'taught' beside 'plus' alone"):
        load("sample,plus,dssm,taught")


def test_labels_are_of_registered_methods_and_tell_them_apart():
    assert registry.LABELS.keys() <= registry.MATCHERS.keys()
    assert len(set(registry.LABELS.values())) == len(registry.LABELS)
    for name, label in registry.LABELS.items():
        rebuilt = "-style" in (
            inspect.getdoc(sys.modules[registry.MATCHERS[name].__module__]) or ""
        )
        # The file of FuXi-alpha has the rebuilt Fuxi-MME too.
        assert label.endswith("-style") == rebuilt or name == "fuxi"
