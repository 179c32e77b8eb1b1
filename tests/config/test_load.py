"""Where configurations are found, and what may be put into their fields."""

import pathlib
import subprocess
import sys

import pytest

from dsmoe_jax.config import fingerprint, load, restore

ROOT = pathlib.Path(__file__).parents[2]


def test_repeats_are_not_removed_from_the_lists_that_are_to_find_them():
    load.load_config("custom", {"data.repeats": True, "eval.remove_seen": "none"})
    for rule in ("positives", "shown"):
        with pytest.raises(ValueError, match=r"eval\.remove_seen: expected 'none' with data\.rep"):
            load.load_config("custom", {"data.repeats": True, "eval.remove_seen": rule})


def test_a_name_a_path_and_the_text_of_a_value_mean_the_same(monkeypatch):
    monkeypatch.chdir(ROOT)
    by_name = load.load_config("kuairand:sample", {"train.learning_rate": 3e-4, "eval.k": [10, 20]})
    nested = {"train": {"learning_rate": "3e-4"}, "eval": {"k": "10,20"}}
    by_path = load.load_config("configs/kuairand.py:sample", nested)
    assert fingerprint.as_dict(by_name) == fingerprint.as_dict(by_path)
    assert by_name.train.learning_rate == 3e-4
    assert by_name.eval.k == (10, 20)


def test_a_file_of_ones_own_is_found_before_a_packaged_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "configs" / "custom.py").read_text().replace('"my shop"', '"mine"')
    (tmp_path / "custom.py").write_text(text)
    assert load.load_config("custom.py").dataset == "mine"
    assert load.load_config("custom").dataset == "my shop"


def test_whole_numbers_become_real_ones():
    experiment = load.load_config("kuairand:sample", {"train.max_minutes": 1})
    assert type(experiment.train.max_minutes) is float


@pytest.mark.parametrize(
    ("spec", "values", "message"),
    [
        (
            "kuairnd",
            {},
            "--config: expected a file or one of alimama, custom, kuairand, movielens, simulation, "
            "got 'kuairnd'; nearest: 'kuairand'",
        ),
        ("custom", {"train.max_epochs": 2.5}, "config.train.max_epochs: expected int, got 2.5"),
        ("custom", {"train.max_epochs": True}, "config.train.max_epochs: expected int, got True"),
        ("custom", {"eval.references": 1}, "config.eval.references: expected bool, got 1"),
        ("custom", {"eval.k": 3}, r"config.eval.k: expected tuple[int, ...], got 3"),
        ("custom", {"eval.k": "a,b c"}, "config.eval.k: expected tuple[int, ...], got 'a,b c'"),
        ("custom", {"eval": {"k": ["a"]}}, "config.eval.k: expected elements of type int, got 'a'"),
        ("custom", {"dataset": None}, "config.dataset: expected str, got None"),
        (
            "custom",
            {"train": 3},
            "'config.train' is a section; set its fields, e.g. --config.train.batch_size=...",
        ),
        (
            "custom",
            {"train.learning_rat": 1.0},
            "unknown field 'config.train.learning_rat'; nearest: 'config.train.learning_rate'",
        ),
        (
            "custom",
            {"train.learning_rate": -1.0},
            "train.learning_rate: expected a number > 0, got -1.0",
        ),
    ],
)
def test_what_is_wrong_is_one_line(spec, values, message):
    with pytest.raises(ValueError) as raised:
        load.load_config(spec, values)
    assert str(raised.value) == message


def test_loading_needs_no_jax():
    code = "import sys; from dsmoe_jax.config import load, restore; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "spec",
    [
        "kuairand:sample,teacher=fused",
        "movielens:synthetic,hstu",
        "custom:perscen",
        "simulation:shift",
    ],
)
def test_an_experiment_is_restored_from_its_record(spec):
    experiment = load.load_config(spec, {"seed": 3})
    record = fingerprint.as_dict(experiment), restore.class_names(experiment)
    restored = restore.restore(*record)
    assert (fingerprint.as_dict(restored), restore.class_names(restored)) == record
    assert fingerprint.config_hash(restored) == fingerprint.config_hash(experiment)
    assert type(restored.model) is type(experiment.model)


@pytest.mark.parametrize(
    ("former", "rule"),
    [(True, "positives"), (False, "none"), ("False", "none"), ("true", "positives")],
)
def test_former_values_of_a_field_are_understood(former, rule, tmp_path):
    experiment = load.load_config("custom", {"eval.remove_seen": former})
    assert experiment.eval.remove_seen == rule
    record = fingerprint.as_dict(experiment)
    record["eval"]["remove_seen"] = former
    restored = restore.restore(record, restore.class_names(experiment))
    assert restored.eval.remove_seen == rule
    text = (ROOT / "configs" / "custom.py").read_text()
    own = f"    experiment.eval.remove_seen = {former!r}\n    return experiment\n"
    assert text.count("    return experiment\n") == 1
    (tmp_path / "own.py").write_text(text.replace("    return experiment\n", own))
    assert load.load_config(str(tmp_path / "own.py")).eval.remove_seen == rule


@pytest.mark.parametrize(
    ("flag", "rule"),
    [("--noconfig.eval.remove_seen", "none"), ("--config.eval.remove_seen", "positives")],
)
def test_a_field_that_was_a_switch_is_still_switched(flag, rule):
    experiment = load.load_config("custom", {"eval.remove_seen": "shown"})
    changed, _ = load.read_texts(experiment, ["--config.seed=3", flag])
    assert changed == {"seed": 3, "eval.remove_seen": rule}
    assert (experiment.seed, experiment.eval.remove_seen) == (3, rule)


def test_a_rule_of_removal_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"eval.remove_seen: expected one of \('none', .* 'all'"):
        load.load_config("custom", {"eval.remove_seen": "all"})


def test_a_class_of_a_configuration_file_is_found_again(tmp_path):
    file = tmp_path / "own.py"
    own = "\n\nclass OwnConfig(custom.CustomConfig):\n    pass\n"
    text = (ROOT / "configs" / "custom.py").read_text() + own
    file.write_text(text.replace("return custom.CustomConfig(", "return OwnConfig("))
    experiment = load.load_config(str(file))
    classes = restore.class_names(experiment)
    assert classes["data"] == f"{file}:OwnConfig"
    restored = restore.restore(fingerprint.as_dict(experiment), classes)
    assert type(restored.data).__name__ == "OwnConfig"
    file.unlink()
    with pytest.raises(ValueError, match=r"own\.py:OwnConfig: expected the class of a section"):
        restore.restore(fingerprint.as_dict(experiment), classes)


@pytest.mark.parametrize(
    ("spec", "values", "message"),
    [
        (
            "kuairand:sample",
            {"loss.log_q": True},
            "loss.log_q: expected False with loss.task 'bce'",
        ),
        (
            "kuairand:sample",
            {"loss.uniform_share": 0.5},
            "loss.uniform_share: expected 0 with loss.negatives 'uniform'",
        ),
        (
            "kuairand:sample,fism",
            {"loss.task": "softmax"},
            "loss.task: expected 'bce' with FISMConfig, whose loss is its own",
        ),
        (
            "kuairand:sample,fism",
            {"loss.negatives": "scenario"},
            "loss.negatives: expected 'uniform' with FISMConfig",
        ),
    ],
)
def test_losses_that_would_mean_nothing_are_refused(spec, values, message):
    with pytest.raises(ValueError, match=message):
        load.load_config(spec, values).validate()
    usual = load.load_config("kuairand:sample", {"loss.task": "softmax", "loss.log_q": True})
    usual.validate()
