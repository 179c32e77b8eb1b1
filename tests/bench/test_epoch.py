import pytest

from dsmoe_jax.bench import __main__ as command_line


# The steps themselves are timed in test_step_time.py.
@pytest.mark.slow
def test_an_epoch_of_each_stage_is_measured_and_extrapolated(capsys):
    flags = ["--impressions=8000", "--hidden_dim=8", "--output_dim=8"]
    assert command_line.main(["epoch", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "hidden_dim 8, output_dim 8" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["teacher", "student"]
    assert "50 epochs of 650,283 examples would take" in lines[1]
    assert "39,845 steps alone take" in lines[3]
