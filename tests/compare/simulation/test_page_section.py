import json
import math

import pytest

from dsmoe_jax.compare import __main__ as command_line
from dsmoe_jax.compare.simulation import designs, page_section

WORLD = designs.World(
    name="shift",
    title="A shift",
    text="{data[num_users]:,} users, width {model[output_dim]}.",
    arms=(
        designs.Arm("truth", "_truth_", "truth"),
        designs.Arm("ours", "**ours**"),
        designs.Arm("control", "without"),
    ),
    questions=(designs.Question("Does it help?", "ours", "control"),),
    has_tail=True,
)
# Recalls of four scenarios by share: large, medium, small, smallest.
SHARES = (0.5, 0.1, 0.3, 0.1)


def record(arm, seed, recalls):
    rows = {
        str(s): {"share": share, "queries": 10, "recall@50": value}
        for s, (share, value) in enumerate(zip(SHARES, recalls, strict=True))
    }
    found = {"scenarios": rows, "macro": {"recall@50": sum(recalls) / 4}}
    params = {} if arm == "truth" else {"params": {"dense": 54700, "embedding": 1}}
    return {
        "seed": seed,
        "k": [50],
        "systems": {"truth" if arm == "truth" else f"shift-{arm}": found},
        **params,
        "candidates": 2000,
        "seen_items_removed": True,
        "device": "1 x cpu (2 cores)",
        "date": "2026-01-02",
    }


def write(folder, gains, arms=("truth", "ours", "control")):
    """Records in which ours is better than the control by `gains`, one a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, gain in enumerate(gains, start=1):
        for arm in arms:
            base = {"truth": 0.6, "ours": 0.4 + gain, "control": 0.4}[arm]
            entry = record(arm, seed, [base, base, base, base])
            (folder / f"shift-{arm}-seed{seed}.json").write_text(json.dumps(entry))
    return folder


def found(recalls):
    made = record("ours", 1, recalls)
    return page_section.Found(made, made["systems"]["shift-ours"], None)


def make(folder):
    return page_section.section(page_section.load(folder, (WORLD,)), (WORLD,))


def test_interval_is_students():
    # t(0.975, 2) = 4.30265; standard error 1 / sqrt(3).
    interval = page_section.student_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2.0, 2.0 - 2.48414, 2.0 + 2.48414), abs=1e-4)


def test_one_value_has_no_interval():
    mean, low, high = page_section.student_interval([1.5])
    assert mean == 1.5 and math.isnan(low) and math.isnan(high)


def test_tail_is_the_mean_of_the_smaller_half_by_share():
    assert page_section.tail(found([0.9, 0.2, 0.8, 0.4])) == pytest.approx(0.3)
    assert page_section.macro(found([0.9, 0.2, 0.8, 0.3])) == pytest.approx(0.55)


def test_table_has_means_spreads_and_parameters(tmp_path):
    lines = make(write(tmp_path, (0.01, 0.03))).splitlines()
    assert lines[0] == "### A shift"
    assert lines[2] == "4,000 users, width 16."
    assert "|  | macro | tail | dense parameters |" in lines
    assert "| _truth_ | 60.0 ± 0.0 | 60.0 ± 0.0 |  |" in lines
    assert "| **ours** | 42.0 ± 1.4 | 42.0 ± 1.4 | 54,700 |" in lines


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.01, 0.02, 0.03), "macro +2.0 [-0.5, +4.5], not told apart from zero"),
        ((0.02, 0.021, 0.022), "macro +2.1 [+1.9, +2.3], above zero"),
        ((-0.02, -0.021, -0.022), "macro -2.1 [-2.3, -1.9], below zero"),
        ((0.02,), "macro +2.0 no interval, one seed says nothing about zero"),
    ],
)
def test_an_answer_follows_from_the_interval(tmp_path, gains, expected):
    [answer] = [line for line in make(write(tmp_path, gains)).splitlines() if line[:2] == "- "]
    assert answer.startswith('- Does it help? "ours" minus "without", in points: ')
    assert expected in answer
    each = ", ".join(f"{100 * gain:+.1f}" for gain in gains)
    assert f"(per seed {each})" in answer


def test_seeds_without_every_arm_are_left_out(tmp_path):
    write(tmp_path, (0.01, 0.03))
    write(tmp_path, (0.01, 0.03, 0.05), arms=("ours",))
    text = make(tmp_path)
    assert "seeds 1, 2, each" in text
    assert "(per seed +1.0, +3.0)" in text


def test_caption_says_metric_pool_queries_machine_and_date(tmp_path):
    caption = make(write(tmp_path, (0.01, 0.03))).splitlines()[-1]
    for part in ("recall@50", "2,000 candidates", "40 queries", "removed", "2 cores", "2026-01-02"):
        assert part in caption


def test_no_finished_seed_is_refused(tmp_path):
    write(tmp_path, (0.01,), arms=("truth", "ours"))
    with pytest.raises(ValueError, match="expected a seed with every arm finished, found none"):
        make(tmp_path)


def test_every_world_has_its_numbers_in_its_text(tmp_path):
    data = {"num_users": 4, "num_items": 3, "num_scenarios": 2, "num_creators": 2}
    data |= {"match_weight": 4.0, "recent": 10}
    for world in designs.WORLDS:
        text = world.text.format(data=data, model={"output_dim": 16})
        assert text.startswith("4 users, 3 items") and "{" not in text


def test_render_writes_between_its_own_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(designs, "WORLDS", (WORLD,))
    records = write(tmp_path / "records" / "simulation", (0.01, 0.03))
    page = tmp_path / "README.md"
    begin, end = (f"<!-- compare: {WORLD.name}: {at} -->" for at in ("begin (generated)", "end"))
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    flags = ["render", f"--root={tmp_path}", f"--records={tmp_path / 'records'}"]
    assert command_line.main(flags) == 0
    before, written = page.read_text().split(f"{begin}\n")
    assert before == "before\n" and written.endswith(f"{make(records)}\n{end}\nafter\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["simulate", "--worlds=shfit"],
            "--worlds: expected names among shift, match, got 'shfit'",
        ),
        (
            ["render", "table"],
            "render: expected README.md or a page under docs/, got table",
        ),
        (["simulate", "--config.train.epoch=1"], "nearest: 'config.train.max_epochs'"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(arguments, message, capsys):
    assert command_line.main(arguments) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line
