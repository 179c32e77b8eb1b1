import os

import pytest

from dsmoe_jax.bench import __main__ as command_line
from dsmoe_jax.bench import pairs, step_time
from tests.bench import small_run


def test_both_of_our_steps_are_timed_and_compared():
    flags = ("--ours=dense,row_sparse", "--twins=", "--hidden_dim=8", "--output_dim=8")
    found = small_run.measure(step_time, *flags, "--rounds=2", "--repetitions=1")
    assert set(found["step_ms"]) == {"dsmoe_jax dense", "dsmoe_jax row_sparse"}
    assert set(found["ratio"]["dense"]) == {"dsmoe_jax row_sparse"}
    assert set(found["parts_ms"]) == {"forward", "backward", "update"}
    assert found["parts_ms"]["forward"] > 0
    lines = step_time.describe(found)
    assert "816 positives, 4,080 pairs" in lines[0]
    assert lines[1].startswith("  machine: ")
    assert "x dense" in lines[-1]


def test_contestants_are_held_to_instructions_and_this_process_is_not(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    before, seen = dict(os.environ), {}

    def take_turns(contestants, **_):
        seen.update(os.environ)
        raise ValueError("seen")

    monkeypatch.setattr(pairs, "take_turns", take_turns)
    with pytest.raises(ValueError, match="seen"):
        small_run.measure(step_time, "--twins=", "--instructions=avx2")
    assert seen["ATEN_CPU_CAPABILITY"] == "avx2"
    assert seen["XLA_FLAGS"] == f"{before['XLA_FLAGS']} --xla_cpu_max_isa=AVX2"
    assert dict(os.environ) == before


@pytest.mark.parametrize("flag", ["--ours=quick", "--twins=jit", "--ours="])
def test_unknown_names_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["step", flag])
    assert caught.value.code == 2
    assert "expected names among" in capsys.readouterr().err
