import pytest

from dsmoe_jax.bench import pairs


def build_counter(start):
    count = start

    def turn(repetitions):
        nonlocal count
        count += repetitions

    return turn, {"start": start}


def build_nothing():
    raise ValueError("no such machine")


def build_and_die():
    raise SystemExit(3)


def test_contestants_take_turns_and_say_who_they_are():
    contestants = {name: pairs.Contestant(build_counter, (n,)) for n, name in enumerate("ab")}
    found = pairs.take_turns(contestants, rounds=3, repetitions=2, warmup=1)
    assert [found[name].notes for name in "ab"] == [{"start": 0}, {"start": 1}]
    assert all(len(timing.seconds) == 3 and min(timing.seconds) > 0 for timing in found.values())


def test_a_contestant_that_cannot_be_built_is_named():
    contestants = {"broken": pairs.Contestant(build_nothing)}
    with pytest.raises(ValueError, match="broken: no such machine"):
        pairs.take_turns(contestants, rounds=1, repetitions=1, warmup=0)


def test_a_process_that_ends_by_itself_is_noticed():
    contestants = {"dead": pairs.Contestant(build_and_die)}
    with pytest.raises(ValueError, match="dead: the process ended; its own message says why"):
        pairs.take_turns(contestants, rounds=1, repetitions=1, warmup=0)


def test_ratios_are_taken_within_rounds():
    slow, fast = pairs.Timing([2.0, 30.0, 4.0], {}), pairs.Timing([1.0, 10.0, 1.0], {})
    assert slow.median == 4.0
    assert pairs.ratio(slow, fast) == {"median": 3.0, "least": 2.0, "greatest": 4.0}
