import json
import subprocess

import pytest

from dsmoe_jax import identity, main
from dsmoe_jax.suite import cells, rows

TABLE = (
    rows.Row("ours", "ours", "configs/kuairand.py:sample"),
    rows.Row("ablated", "ours without SAP", "configs/kuairand.py:sample,no_sap", teacher_of="ours"),
)


class Runner:
    """Stands for the subprocess: writes what a run would."""

    def __init__(self, status=0):
        self.commands = []
        self.status = status

    def __call__(self, command, **options):
        self.commands.append(command)
        experiment = main.parse(["x", *command[3:]]).experiment
        workdir = next(part for part in command if part.startswith("--workdir=")).split("=")[1]
        found = {
            "config_hash": identity.config_hash(experiment),
            "seed": experiment.seed,
            "references": {},
        }
        with open(f"{workdir}/results.json", "w") as file:
            json.dump(found, file)
        return subprocess.CompletedProcess(command, self.status)


@pytest.fixture
def runner(monkeypatch):
    fake = Runner()
    monkeypatch.setattr(cells.subprocess, "run", fake)
    return fake


def test_every_seed_of_every_row_runs_once(runner, tmp_path):
    for _ in range(2):
        cells.run_all(TABLE, tmp_path / "runs", 2, tmp_path / "published")
    assert len(runner.commands) == 4
    names = sorted(path.name for path in (tmp_path / "published").iterdir())
    assert names == [
        "ablated-seed0.json",
        "ablated-seed1.json",
        "ours-seed0.json",
        "ours-seed1.json",
    ]


def test_a_row_takes_the_teacher_of_the_row_it_names(runner, tmp_path):
    cells.run_all(TABLE, tmp_path / "runs", 1, tmp_path / "published")
    flag = f"--config.teacher.from_workdir={tmp_path / 'runs' / 'ours-seed0'}"
    assert flag in runner.commands[1]
    assert not any("from_workdir" in part for part in runner.commands[0])


def test_a_record_of_another_configuration_is_made_again(runner, tmp_path):
    cells.run_all(TABLE[:1], tmp_path / "runs", 1, tmp_path / "published")
    changed = (rows.Row("ours", "ours", "configs/kuairand.py:sample,no_dsbn"),)
    cells.run_all(changed, tmp_path / "runs", 1, tmp_path / "published")
    assert len(runner.commands) == 2


def test_a_failed_cell_names_its_log_and_publishes_nothing(runner, tmp_path):
    runner.status = 2
    with pytest.raises(ValueError, match=r"ours-seed0/log.txt: the cell ours-seed0 ended with"):
        cells.run_all(TABLE, tmp_path / "runs", 1, tmp_path / "published")
    assert list((tmp_path / "published").iterdir()) == []


def test_a_record_has_no_cold_items_and_only_the_recall_of_references():
    judged = {"macro": {"recall@50": 0.5, "ndcg@50": 0.4, "hit_rate@50": 0.3}, "cold": {"macro": 1}}
    found = cells.to_record(
        {**judged, "validation": judged, "references": {"SVD": {**judged, "validation": judged}}}
    )
    macro = judged["macro"]
    assert found == {
        "macro": macro,
        "validation": {"macro": macro},
        "references": {
            "SVD": {"macro": {"recall@50": 0.5}, "validation": {"macro": {"recall@50": 0.5}}}
        },
    }
