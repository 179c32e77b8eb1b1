import json

import pytest

from dsmoe_jax.bench import __main__ as command_line
from dsmoe_jax.bench import measurements

FOUND = {
    "embedding": "row_sparse",
    "step_ms": {"64 rows": 2.0, "640 rows": 3.0},
    "ratio": {
        "64 rows": {"median": 1.0, "least": 1.0, "greatest": 1.0},
        "640 rows": {"median": 1.5, "least": 1.4, "greatest": 1.6},
    },
}


def test_a_kept_measurement_holds_its_command_without_the_files_name(tmp_path):
    path = tmp_path / "kept.json"
    flags = ["--rows=64", "--hidden_dim=4", "--output_dim=4", "--rounds=1", "--repetitions=1"]
    assert command_line.main(["growth", *flags[:2], "--json", str(path), *flags[2:]]) == 0
    record = json.loads(path.read_text())
    assert (record["command"], record["arguments"]) == ("growth", flags)
    assert record["found"]["step_ms"]["64 rows"] > 0
    assert "jax" in record["machine"]


def test_the_section_shows_each_command_with_what_it_printed(tmp_path):
    for name, rows in (("b", "64,640"), ("a", "64,64")):
        record = measurements.make("growth", [f"--rows={rows}"], FOUND)
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    lines = measurements.blocks(tmp_path)["measurements"]().text.splitlines()
    assert lines[:2] == ["```", "$ python -m dsmoe_jax.bench growth --rows=64,64"]
    assert "640 rows      3.0 ms, 1.50 x the first [1.40, 1.60]" in lines[4]
    assert lines[6] == "$ python -m dsmoe_jax.bench growth --rows=64,640"


def test_a_folder_without_measurements_is_refused(tmp_path, capsys):
    assert command_line.main(["render", f"--records={tmp_path}"]) == 2
    assert "expected measurements" in capsys.readouterr().err


def test_the_front_page_has_four_numbers_of_the_published_measurements():
    lines = measurements.blocks(measurements.PUBLISHED)["speed"]().text.splitlines()
    assert len(lines) == 4
    published = measurements.blocks(measurements.PUBLISHED)["measurements"]().text
    for line, said, shown in zip(
        lines,
        ("1.97 to 2.27 times as fast", "1.08 times as long", "20.9 s, 0.6 GiB", "4.0 GB on each"),
        ("2.27 x dense", "1.08 x the first", "20.9 s [", "4,039,100,768"),
        strict=True,
    ):
        assert said in line and shown in published


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_every_measurement_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main([command, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out
