import jax
import numpy as np
import pytest

from dsmoe_jax import console, runlog, terminal
from dsmoe_jax.data.prepare import streams


def test_control_characters_are_shown_and_line_ends_stay():
    assert terminal.printable("a\x1b[2Jb\x9b\x07\r\n\té首") == "a\\x1b[2Jb\\x9b\\x07\\x0d\n\té首"
    assert terminal.printable("\u202eabc") == "\\x202eabc"
    assert terminal.one_line("a\nb\tc\x00") == "a\\nb\\tc\\x00"


def test_neither_messages_nor_errors_reach_a_terminal_with_them(capsys):
    def fail():
        raise ValueError("scenario '\x1b[31mred': expected one")

    assert console.exit_status(fail) == 2
    assert capsys.readouterr().err == "error: scenario '\\x1b[31mred': expected one\n"
    runlog.say("store: \x1b[31mred\n 5")
    assert capsys.readouterr().out == "store: \\x1b[31mred\\n 5\n"


def test_a_line_end_in_a_name_is_shown_and_lines_of_a_library_are_raised_on(capsys, tmp_path):
    path = tmp_path / "lo\ng.csv"
    assert console.exit_status(lambda: streams.check_file(path)) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/lo\\ng.csv: expected a file, found none; check the folder and the "
        "name\n"
    )
    for wrong in (lambda: jax.vmap(np.add)(np.zeros(3), np.zeros(4)), fail_in_lines):
        with pytest.raises(ValueError, match="\n"):
            console.exit_status(wrong)


def fail_in_lines():
    raise ValueError("two\nlines")


def test_errors_of_more_lines_than_one_become_one():
    with pytest.raises(ValueError, match=r"^a\\nb$"), terminal.errors_in_one_line():
        raise ValueError("a\nb")
    with pytest.raises(ValueError) as caught, terminal.errors_in_one_line():
        raise terminal_error
    assert caught.value is terminal_error


terminal_error = ValueError("a b")


def test_long_texts_are_cut():
    assert terminal.shorten("a" * 80) == "a" * 80
    assert terminal.shorten("a" * 81) == "a" * 77 + "..."
    assert terminal.some(["a", "b" * 99]) == "a, " + "b" * 77 + "..."
    assert terminal.some(["a"] * 22).endswith(", a and 2 more")


@pytest.mark.parametrize("text", ["plain", "首页 🛒", ""])
def test_what_is_no_control_character_stays(text):
    assert terminal.printable(text) == text
