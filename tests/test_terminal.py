import pytest

from dsmoe_jax import console, runlog, terminal


def test_control_characters_are_shown_and_line_ends_stay():
    assert terminal.printable("a\x1b[2Jb\x9b\x07\r\n\té首") == "a\\x1b[2Jb\\x9b\\x07\\x0d\n\té首"
    assert terminal.printable("\u202eabc") == "\\x202eabc"
    assert terminal.one_line("a\nb\tc\x00") == "a\\nb\\tc\\x00"


def test_neither_messages_nor_errors_reach_a_terminal_with_them(capsys):
    def fail():
        raise ValueError("scenario '\x1b[31mred': expected one")

    assert console.exit_status(fail) == 2
    assert capsys.readouterr().err == "error: scenario '\\x1b[31mred': expected one\n"
    runlog.say("store: \x1b[31mred 5")
    assert capsys.readouterr().out == "store: \\x1b[31mred 5\n"


@pytest.mark.parametrize("text", ["plain", "首页 🛒", ""])
def test_what_is_no_control_character_stays(text):
    assert terminal.printable(text) == text
