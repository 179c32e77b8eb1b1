"""Plans against a step that eight simulated devices really take."""

import dataclasses

import jax
import pytest

from dsmoe_jax.bench import __main__ as command_line
from dsmoe_jax.bench import scale
from dsmoe_jax.capacity import abstract, cases, estimate
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.training import row_sparse, sharding
from tests.bench import small_case, small_run

ROWS = 32_768
OVERRIDES = {"num_experts": 1, "rank": 1, "hidden_dim": 8, "output_dim": 8}


def make_spec():
    return estimate.resize(small_case.make_spec(), ROWS - 1, ROWS - 1)


def make_setup():
    spec, mesh = make_spec(), sharding.make_mesh()
    updater = row_sparse.RowSparse(spec, 1e-4, 1e-6, mesh=mesh)
    model = dsmoe.DSMOEConfig(**OVERRIDES).make(spec)
    return abstract.Setup(model, updater, mesh, cases.POSITIVES, cases.NEGATIVES)


def test_a_plan_is_what_a_run_holds_and_moves(monkeypatch):
    monkeypatch.setitem(cases.CASES, "small", (make_spec(), (0.5, 0.3, 0.2)))
    ran = scale.run("small", "row_sparse", OVERRIDES, steps=1)
    planned = estimate.plan_setup(make_setup(), memory_bytes=1.0)
    parts = planned["bytes"]
    state = ("tables", "moments of tables", "all other parameters and their state")
    assert sum(parts[name] for name in state) == ran["state_bytes"]
    assert planned["moved_bytes"] == ran["moved_bytes"]
    assert parts[estimate.TEMPORARY] == ran["temporary_bytes"]
    # 4 wide, two tables of values, two moments and one slot.
    assert parts["tables"] == pytest.approx(2 * ROWS * 4 * 4 / 8, rel=0.01)
    assert parts["moments of tables"] == pytest.approx(2 * ROWS * (2 * 4 + 1) * 4 / 8, rel=0.01)
    assert planned["index_bytes"] == ROWS * 8 * 4 // 8
    assert planned["largest_batch"] == 0


def test_the_largest_batch_nearly_fills_the_memory():
    setup, memory_bytes = make_setup(), 8 * 2.0**20
    planned = estimate.plan_setup(setup, memory_bytes)
    largest = planned["largest_batch"]
    assert largest > setup.batch_size
    assert largest % 8 == 0
    again = estimate.plan_setup(dataclasses.replace(setup, batch_size=largest), memory_bytes)
    assert 0.9 * memory_bytes < again["total_bytes"] <= memory_bytes


def test_any_number_of_devices_splits_the_tables_of_fields():
    setup = make_setup()
    six = abstract.Setup(
        setup.model, setup.updater, sharding.make_mesh(jax.devices()[:6]), 12, setup.num_negatives
    )
    assert estimate._find_whole_tables(six) == []
    held, on_eight = (estimate.count_parts(one)["tables"] for one in (six, setup))
    assert held == pytest.approx(on_eight * 8 / 6, rel=0.01)


def test_tables_of_a_models_own_making_are_told_of_where_they_stay_whole(monkeypatch):
    setup = make_setup()
    # As those are, which a model insists on.
    monkeypatch.setattr(sharding, "FIELD_TABLES", "none of this name")
    six = abstract.Setup(
        setup.model, setup.updater, sharding.make_mesh(jax.devices()[:6]), 12, setup.num_negatives
    )
    lines = estimate._find_whole_tables(six)
    assert len(lines) == 2
    assert "'user_id']: every device holds all 32,768 rows, which 6 devices do not" in lines[1]


def test_a_configuration_names_models_and_optimiser():
    flags = ("--users=1e9", "--config=configs/kuairand.py:sample", "--embedding=row_sparse")
    setup = estimate.make_setup(small_run.parse(estimate, *flags))
    assert setup.spec.user_sparse[0].num_ids == 10**9 + 1
    assert setup.teacher is not None
    assert isinstance(setup.updater, row_sparse.RowSparse)
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 8 devices, got 9"):
        estimate.make_setup(small_run.parse(estimate, "--batch_size=9"))
    with pytest.raises(ValueError, match="'user_id': expected at most"):
        estimate.make_setup(small_run.parse(estimate, "--users=3e9"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--users=1.5"], "expected a whole number above 0, got '1.5'"),
        (["scale", "--devices=1,x"], "expected numbers >= 1 as 8,16, got '1,x'"),
    ],
)
def test_flags_that_are_no_numbers_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command_line.main(arguments)
    assert message in capsys.readouterr().err


def test_processes_must_divide_the_devices(capsys):
    assert command_line.main(["plan", "--devices=4", "--processes=3"]) == 2
    assert "expected a multiple of the 3 processes, got 4" in capsys.readouterr().err
