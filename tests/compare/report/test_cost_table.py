"""Table 3, from records that nobody ran."""

from dsmoe_jax.compare.report import build, cost_table
from tests.compare import made_up

CONFIG = "configs/kuairand.py:sample"


def test_table_3_counts_pairs_parameters_and_seconds(tmp_path):
    made_up.save_comparison(tmp_path, days=(0, 2))
    source = build.Source(tmp_path, CONFIG)
    table = cost_table.make(source.systems("table3"))
    own = made_up.row_of(table, "DSMOE")
    assert own["all, M"].text == "0.750"
    assert own["MiB in float32"].text == "2.86"
    assert own["GMACs of a forward pass"].text == "0.006"  # 6.5 million
    assert own["GFLOPs"].text == "0.013"
    assert own["an epoch's steps, s"].text == "2.0"
    assert own["teacher, s"].text == "50"
    printed = made_up.row_of(table, "paper: DSMOE")
    assert printed["all, M"].text == "2.11"
    assert printed["GMACs of a forward pass"].text == "6.21"
    assert printed["training, s"].text == "7,174"


def test_table_3_names_the_machines_of_the_jobs_that_it_shows(tmp_path):
    made_up.save_comparison(tmp_path, days=(0, 2))
    elsewhere = made_up.record("dsmoe", {"dsmoe": made_up.system((0.4, 0.3))}, seed=2, days=2)
    made_up.save(tmp_path, elsewhere | {"device": "1 x GPU", "cores": 16})
    source = build.Source(tmp_path, CONFIG)
    [note] = cost_table.make(source.systems("table3")).notes
    assert "on 1 x cpu (2 cores), 1 core(s) a run" in note and "GPU" not in note
    # The machines of all jobs stand above all tables.
    assert "1 x GPU, 1 x cpu (2 cores)" in build.describe(source)[0]
