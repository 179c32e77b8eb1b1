"""True scores as systems."""

import pytest

from dsmoe_jax.compare.simulation import truth
from dsmoe_jax.config import load
from dsmoe_jax.data import store as store_lib

SMALL = {
    "data.num_users": 240,
    "data.num_items": 120,
    "data.num_creators": 40,
    "data.events_per_user": 12,
    "data.num_days": 12,
    "eval.k": (10,),
}


def evaluate(folder, width):
    fields = {**SMALL, "model.output_dim": width, "data.store_dir": str(folder / "store")}
    experiment = load.load_config("simulation:match", fields)
    experiment.data.prepare(experiment.data.store_dir)
    found = truth.evaluate(experiment, store_lib.Store.open(folder / "store"))
    return {system.name: system.test.summarise()["macro"]["recall@10"] for system in found}


def test_a_truncation_loses_unless_it_is_wide_enough(tmp_path):
    narrow, wide = (evaluate(tmp_path, width) for width in (4, 120))
    assert narrow["truth"] == wide["truth"] > narrow["truncated"]
    assert wide["truncated"] == pytest.approx(wide["truth"], abs=0.005)
