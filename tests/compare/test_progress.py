import pytest

from dsmoe_jax.compare import progress


def states():
    return [
        progress.JobState("a", "run", "done", 100.0),
        progress.JobState("b", "run", "done", 200.0),
        progress.JobState("c", "scored", "done", 10.0),
        progress.JobState("d", "run", "running", 90.0, "epoch 3"),
        progress.JobState("e", "run"),
        progress.JobState("f", "scored"),
        progress.JobState("g", "run", "failed", 5.0, "error: no"),
    ]


@pytest.mark.parametrize(("workers", "seconds"), [(1, 60 + 150 + 10), (2, 110), (9, 220 / 3)])
def test_what_is_left_takes_as_long_as_what_was_done(workers, seconds):
    assert progress.expect_seconds(states(), workers) == pytest.approx(seconds)


def test_nothing_done_says_nothing_of_the_time():
    assert progress.expect_seconds([progress.JobState("a", "run")], 1) is None
    text = progress.summary([progress.JobState("a", "run")], 1)
    assert text == "0 of 1 jobs done, 1 left"


def test_the_list_shows_every_job_and_the_whole():
    lines = progress.whole_list(states(), 2).splitlines()
    assert lines[3] == "   3  running  d     1:30  epoch 3"
    assert lines[-1] == "3 of 7 jobs done, 1 running, 2 left, 1 failed, about 2 min to go"


def test_on_no_terminal_a_line_says_where_the_list_stands(capsys):
    view = progress.View(states(), 2)
    view.show()
    view.tell("hello")
    assert capsys.readouterr().out.startswith("hello  [3 of 7 jobs done")


def test_on_a_terminal_the_block_stays_in_place(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True)
    view = progress.View(states(), 2)
    view.show()
    view.show()
    out = capsys.readouterr().out
    assert out.count("\x1b[2A\x1b[J") == 1
    assert out.count("d  1:30  epoch 3") == 2
