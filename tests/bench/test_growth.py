import pytest

from dsmoe_jax.bench import __main__ as command_line


# The steps themselves are timed in test_step_time.py.
@pytest.mark.slow
def test_steps_with_different_tables_are_compared(capsys):
    command = ["growth", "--rows=64,6_400", "--hidden_dim=8", "--output_dim=8"]
    assert command_line.main([*command, "--rounds=2", "--repetitions=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "row_sparse" in lines[0]
    assert [line.split(" rows")[0].strip() for line in lines[1:]] == ["64", "6,400"]
    assert "1.00 x the first" in lines[1]


@pytest.mark.parametrize("rows", ["many", "4", "100,", ""])
def test_what_is_no_number_of_rows_is_refused(rows, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["growth", f"--rows={rows}"])
    assert caught.value.code == 2
    assert "expected numbers >= 8" in capsys.readouterr().err
