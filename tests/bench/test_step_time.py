import pytest

from dsmoe_jax.bench import __main__ as command_line
from dsmoe_jax.bench import step_time
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
    assert "x dense" in lines[-1]


@pytest.mark.parametrize("flag", ["--ours=quick", "--twins=jit", "--ours="])
def test_unknown_names_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["step", flag])
    assert caught.value.code == 2
    assert "expected names among" in capsys.readouterr().err
