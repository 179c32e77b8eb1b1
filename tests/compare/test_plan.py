import pytest

from dsmoe_jax import main
from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import __main__ as command_line
from dsmoe_jax.compare import budget, plan, rows
from dsmoe_jax.config import fingerprint, load
from dsmoe_jax.models import registry

CONFIG = "configs/kuairand.py:sample"
SMALL, FULL = budget.BUDGETS["small"], budget.BUDGETS["full"]


def names(cells):
    return [cell.name for cell in cells]


def test_every_method_of_the_registry_is_a_row():
    found = {row.name for row in plan.rows_of("table2", CONFIG)}
    assert found == {*registry.MATCHERS, "references", *catalogue.PEERS}


def test_peers_have_a_cell_for_each_seed():
    found = names(plan.make_cells(["table2"], CONFIG, SMALL))
    assert {f"{peer}-seed{seed}" for peer in catalogue.PEERS for seed in (0, 1)} <= set(found)


def test_a_cell_that_several_tables_need_is_run_once():
    cells = plan.make_cells(plan.PRINTED, CONFIG, SMALL)
    assert len(set(names(cells))) == len(cells)
    assert {"dsmoe-seed0", "dsmoe-seed1", "no_sap-seed0", "num_experts1-seed0"} <= set(names(cells))
    # The default values are DSMOE's own row.
    assert not {"num_experts3-seed0", "rank2-seed0"} & set(names(cells))
    assert not {"no_sap-seed1", "references-seed1"} & set(names(cells))


def test_one_teacher_serves_all_seeds_of_the_small_budget():
    cells = {cell.name: cell for cell in plan.make_cells(["table2"], CONFIG, SMALL)}
    assert [name for name in cells if name.startswith("teacher")] == ["teacher-seed0"]
    assert cells["dsmoe-seed1"].teacher == "teacher-seed0"
    assert cells["dsmoe-seed1"].experiment.stage_seed("teacher") == 0
    assert cells["dsmoe-seed1"].experiment.stage_seed("student") == 1
    assert list(cells).index("teacher-seed0") < list(cells).index("dsmoe-seed0")


def test_every_seed_and_day_has_its_teacher_in_the_full_budget():
    cells = {cell.name: cell for cell in plan.make_cells(["table2"], CONFIG, FULL)}
    cell = cells["dsmoe-seed2-drop2"]
    assert cell.teacher == "teacher-seed2-drop2"
    assert cell.experiment.data.drop_last_days == 2
    assert cells[cell.teacher].experiment.data.drop_last_days == 2
    assert cells["references-seed0-drop2"].experiment.data.drop_last_days == 2


def test_what_learns_from_no_teacher_needs_none():
    cells = {cell.name: cell for cell in plan.make_cells(["table4"], CONFIG, SMALL)}
    assert cells["no_distill-seed0"].teacher == ""
    assert cells["no_sap-seed0"].teacher == "teacher-seed0"


def test_a_teacher_that_several_learn_from_is_judged_once():
    cells = plan.make_cells(plan.PRINTED, CONFIG, SMALL)
    taught = [cell for cell in cells if cell.teacher]
    judging = [cell.name for cell in taught if cell.experiment.eval.teacher_test_queries]
    assert judging == ["dsmoe-seed0", "dsmoe-seed1"]
    assert {"no_sap-seed0", "rank1-seed0"} <= {cell.name for cell in taught}


def test_a_row_that_changes_its_teacher_has_a_teacher_of_its_own():
    cells = {cell.name: cell for cell in plan.make_cells([plan.DECIDED], CONFIG, FULL)}
    assert cells["shared_item_tower-seed1"].teacher == "teacher-seed1"
    assert cells["row_sparse-seed0"].teacher == ""
    assert cells["row_sparse-seed0"].experiment.optim.embedding == "row_sparse"
    # It differs in that alone from the row above it.
    assert set(cells["undistilled-seed0"].arguments) < set(cells["row_sparse-seed0"].arguments)
    for name in ("same_fields", "paper_exact"):
        cell = cells[f"{name}-seed2"]
        assert cell.teacher == f"teacher_of_{name}-seed2"
        assert list(cells).index(cell.teacher) < list(cells).index(cell.name)
        assert cell.experiment.eval.teacher_test_queries > 0
        first, second = (
            fingerprint.of_stage(c.experiment, stage="teacher") for c in (cell, cells[cell.teacher])
        )
        assert first == second
    assert not any(cell.dropped_days for cell in cells.values())


def test_every_command_is_one_that_the_run_accepts():
    for cell in plan.make_cells(plan.TABLES, CONFIG, SMALL):
        main.parse(["dsmoe_jax", *cell.arguments]).experiment.validate()


def test_a_figures_rows_are_its_values_in_order():
    assert [row.label for row in plan.rows_of("fig3", CONFIG)] == ["1", "2", "4", "8", "16"]
    assert [row.name for row in plan.rows_of("fig3", CONFIG)][1] == "dsmoe"


def test_all_is_what_the_paper_prints_and_in_the_full_budget_more(capsys, tmp_path):
    def count(*arguments):
        assert command_line.main(["run", *arguments, "--array", f"--dir={tmp_path}"]) == 0
        return int(capsys.readouterr().out.split("-")[1]) + 1

    assert count("all") == len(plan.make_cells(plan.PRINTED, CONFIG, SMALL))
    assert count("all", plan.DECIDED) == len(plan.make_cells(plan.TABLES, CONFIG, SMALL))
    assert count("all", "--budget=full") == len(plan.make_cells(plan.TABLES, CONFIG, FULL))
    assert count("fig4") == 2


def test_rows_and_flags_can_be_added():
    extra = (rows.Row("mine", "mine", CONFIG, kind="scored", is_seeded=False),)
    flags = ("--config.eval.query_batch=7",)
    cells = plan.make_cells(["table2"], CONFIG, SMALL, extra_rows=extra, flags=flags)
    assert names(cells).count("mine-seed0") == 1
    assert all(cell.arguments[-1:] == flags for cell in cells)


def test_a_wrong_configuration_is_refused():
    with pytest.raises(load.UsageError, match="unknown token 'sampel'"):
        plan.make_cells(["table2"], "configs/kuairand.py:sampel", SMALL)


@pytest.mark.parametrize(
    ("config", "got"),
    [
        ("configs/kuairand.py:sample,ican", "ICANConfig"),
        ("configs/kuairand.py:no_sap,sample", "no_sap"),
        ("configs/alimama.py:synthetic,no_distill", "no_distill"),
        ("configs/movielens.py:synthetic", "FuxiConfig"),
    ],
)
def test_only_the_method_itself_stands_under_its_name(config, got):
    with pytest.raises(load.UsageError, match=f"expected DSMOE's own .* got {got}; other"):
        plan.rows_of("fig4", config)
