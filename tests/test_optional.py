import importlib.util

import pytest

from dsmoe_jax.bench import __main__ as command_line


@pytest.mark.parametrize(
    ("command", "module", "name"),
    [
        ("step", "torch", "PyTorch"),
        ("evaluate", "torch", "PyTorch"),
        ("prepare", "pandas", "pandas"),
    ],
)
def test_a_missing_library_is_told_before_anything_runs(command, module, name, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == module else find(wanted)
    )
    assert command_line.main([command]) == 2
    told = capsys.readouterr()
    assert f"expected {name}, found none; pip install '.[cpu,bench]'" in told.err
    assert not told.out
