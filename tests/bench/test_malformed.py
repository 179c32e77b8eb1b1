"""Malformed logs end in one line or are prepared, whatever is wrong with them."""

import random

from dsmoe_jax.bench import malformed
from dsmoe_jax.data.prepare import custom


def test_every_malformed_log_is_prepared_or_refused_in_one_line(tmp_path):
    trials = malformed.generate(tmp_path, random.Random(0))
    ends = {what: malformed.judge(section) for what, section in trials}
    assert len(ends) >= 80
    assert set(ends.values()) == {"equal", "refused"}, ends
    # Nearly all are wrong, and what is wrong with some counts for nothing.
    assert sum(end == "refused" for end in ends.values()) > 50


def test_the_log_beside_which_they_are_wrong_is_sound_and_a_seed_makes_the_same(tmp_path):
    raw = tmp_path / "sound"
    raw.mkdir()
    (raw / "log.csv").write_bytes(malformed._write(malformed._rows()))
    section = custom.CustomConfig(
        raw_dir=str(raw), user_id="user", item_id="item", scenario="",
        positive="rating >= 4", validation_days=1, test_days=1,
    )  # fmt: skip
    assert malformed.judge(section) == "equal"
    made = [[make(random.Random(seed)) for make in malformed.KINDS.values()] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_a_store_beside_a_refusal_is_a_fall(tmp_path):
    section = custom.CustomConfig(raw_dir=str(tmp_path), scenario="")
    (tmp_path / "log.csv").write_text("nothing\n")
    (tmp_path / "half").touch()
    assert malformed.judge(section).startswith("status 2, 2 files, said [")
