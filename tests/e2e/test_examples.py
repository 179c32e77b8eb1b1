"""The examples run as they are, on few rows; a method outside the package keeps all promises."""

import importlib.util

import pytest

import dsmoe_jax
from tests.e2e import commands, test_configs
from tests.models import test_every_matcher

EXAMPLES = commands.ROOT / "examples"
TINY = {
    "train.max_epochs": 1,
    "eval.validation_queries": 40,
    "model.output_dim": 8,
}
TINY_DSMOE = TINY | {
    "model.hidden_dim": 8,
    "teacher.max_epochs": 1,
    "teacher.model.expert_dims": (8, 8),
    "teacher.model.tower_dims": (8,),
    "eval.teacher_validation_queries": 20,
    "eval.teacher_test_queries": 20,
}
SYNTHETIC = dict(flag.removeprefix("--config.").split("=") for flag in commands.SMALL_KUAIRAND)


def load_example(name):
    found = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_quickstart_prints_every_scenario(tmp_path, capsys):
    fields = {"loss.distill_weight": 0.0, "eval.references": False, "model.hidden_dim": 8}
    # The packaged rows are many; `test_packaging` trains on them.
    main = load_example("quickstart").main
    model = main(tmp_path, "kuairand:synthetic", **TINY, **fields, **SYNTHETIC)
    printed = capsys.readouterr().out
    assert all(f"{name}: recall@50" in printed for name in ("K1", "K2", "K3", "K4"))
    assert dsmoe_jax.load(tmp_path).results == model.results


def test_own_data_is_learned_with_a_teacher(capsys):
    few = {"model.num_experts": 1, "teacher.model.num_experts": 1}
    model = load_example("own_data").main(num_events=1500, **TINY_DSMOE, **few)
    assert model.results["teacher"] is not None
    printed = capsys.readouterr().out
    assert "macro recall@10" in printed.splitlines()[-1]
    assert "the last 2 test, the 2 before them validate" in printed
    assert "items: categories category" in printed and "items: numbers price" in printed


def test_own_method_trains_from_python_and_is_loaded_again(tmp_path):
    load_example("own_method").main(tmp_path, "synthetic", **TINY, **SYNTHETIC)
    loaded = dsmoe_jax.load(tmp_path)
    assert type(loaded.experiment.model).__name__ == "LinearConfig"
    assert loaded.evaluate()["macro"] == loaded.results["macro"]


# test_guide_method.py does the same with the guide's method.
@pytest.mark.slow
def test_own_method_trains_from_the_command_line(tmp_path):
    output = commands.run(
        "train",
        "--config=examples/own_method.py:synthetic",
        f"--workdir={tmp_path}",
        *(flag for flag in commands.SMALL if "hidden_dim" not in flag),
        *commands.SMALL_KUAIRAND,
    )
    assert "user_layer/kernel" in output
    assert test_configs.check(tmp_path, taught=False)["variant"] == "synthetic"


CHECKS = [
    value
    for name, value in vars(test_every_matcher).items()
    if name.startswith("test_")
    and value.__code__.co_varnames[: value.__code__.co_argcount] == ("case",)
]


@pytest.fixture(scope="module")
def case():
    return test_every_matcher.Case(load_example("own_method").LinearConfig(output_dim=5))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_own_method_keeps_every_promise(check, case):
    check(case)


def test_there_are_promises_to_keep():
    assert len(CHECKS) >= 8
