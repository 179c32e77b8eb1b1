"""Systems without towers: which there are, and what a missing library means."""

import importlib
import importlib.util
import inspect
import types

import pytest

from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import __main__ as command_line
from dsmoe_jax.compare import progress, runner


@pytest.fixture
def without(monkeypatch):
    """Takes libraries away; all others are there."""
    find = importlib.util.find_spec
    libraries = {library for system in catalogue.EXTERNAL.values() for library in system.libraries}

    def take(*names):
        def find_spec(wanted):
            if wanted in libraries:
                return None if wanted in names else object()
            return find(wanted)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)

    return take


@pytest.mark.parametrize("name", catalogue.SYSTEMS)
def test_every_system_has_a_module_that_needs_no_library_to_be_imported(name):
    module = importlib.import_module(catalogue.SYSTEMS[name].module)
    assert list(inspect.signature(module.evaluate_baselines).parameters) == [
        "store",
        "config",
        "seed",
    ]


def test_a_missing_library_is_told_in_one_line(without):
    without("torch_rechub")
    with pytest.raises(ValueError) as refused:
        catalogue.require("torch_rechub")
    assert str(refused.value) == (
        "torch-rechub YoutubeDNN: expected the library torch_rechub, found none; "
        "pip install '.[baselines]'"
    )
    catalogue.require("implicit")
    catalogue.require("references")


def test_baselines_without_their_libraries_are_listed(without):
    without("lightfm", "torch")
    assert catalogue.list_missing() == ["lightfm", "torch_rechub"]
    without()
    assert catalogue.list_missing() == []


@pytest.mark.parametrize(("state", "told"), [("left out", True), ("done", False)])
def test_a_list_says_which_baselines_it_leaves_out(state, told, monkeypatch, capsys):
    job = types.SimpleNamespace(system=types.SimpleNamespace(name="lightfm"))
    work = types.SimpleNamespace(
        jobs=[job], states=[progress.JobState("lightfm-seed0", "scored", state)]
    )
    monkeypatch.setattr(runner, "Runner", lambda *arguments: work)
    assert command_line.main(["run", "table2", "--list"]) == 0
    line = "left out: LightFM WARP; pip install '.[baselines]'\n"
    assert (line in capsys.readouterr().out) == told


def test_versions_are_those_of_what_was_installed():
    assert catalogue.versions("references") == {}
