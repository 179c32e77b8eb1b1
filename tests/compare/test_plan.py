import pytest

from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import __main__ as command_line
from dsmoe_jax.compare import numerics, plan
from dsmoe_jax.config import fingerprint, load
from dsmoe_jax.models import registry

CONFIG = "configs/kuairand.py:sample"
SMALL, FULL = plan.BUDGETS["small"], plan.BUDGETS["full"]


def names(jobs):
    return [job.name for job in jobs]


def test_every_method_of_the_registry_is_a_row():
    others = {*registry.MATCHERS, "references", *catalogue.EXTERNAL} - {registry.PLUS_MATCHER}
    for config, label, more in (
        (CONFIG, "DSMOE", set()),
        (f"{CONFIG},plus", "DSMOE beside FISM", {plan.TAUGHT}),
    ):
        found = {row.name: row for row in plan.systems_of("table2", config)}
        assert found.keys() == others | more
        assert found["dsmoe"].label == label
    assert found[plan.TAUGHT].label == "DSMOE beside FISM, taught"


def test_with_other_inputs_every_row_has_them_and_dsmoe_no_teacher():
    jobs = {job.name: job for job in plan.make_jobs(["table2"], f"{CONFIG},plus", SMALL)}
    assert not any(name.startswith("teacher") for name in jobs)
    for name in ("dsmoe", "dssm", "fism", "references"):
        assert jobs[f"{name}-seed0"].experiment.data.exposures
    components = jobs["dsmoe-seed0"].components
    assert registry.PLUS_MATCHER in components and "dsmoe" not in components


def test_dsmoe_beside_fism_has_ablations_of_its_own():
    systems = {s.name: s for s in plan.systems_of("table4", f"{CONFIG},plus")}
    assert [*systems] == ["dsmoe", *plan.PLUS_ABLATIONS]
    own = load.load_experiment(*load.split(systems.pop("dsmoe").config))
    jobs = {job.system.name: job for job in plan.make_jobs(["table4"], f"{CONFIG},plus", SMALL)}
    hashes = {fingerprint.config_hash(jobs[name].experiment) for name in systems}
    assert len(hashes) == len(systems) and fingerprint.config_hash(own) not in hashes
    assert not jobs["no_exposures"].experiment.data.exposures
    assert jobs["no_exposure_targets"].experiment.model.exposure_weight == 0
    assert jobs["no_exposure_history"].experiment.features.exclude == ("user_id", "exposures")


def test_baselines_of_libraries_have_a_job_for_each_seed():
    found = names(plan.make_jobs(["table2"], CONFIG, SMALL))
    assert {f"{name}-seed{seed}" for name in catalogue.EXTERNAL for seed in (0, 1)} <= set(found)


def test_a_job_that_several_tables_need_is_run_once():
    jobs = plan.make_jobs(plan.PRINTED, CONFIG, SMALL)
    assert len(set(names(jobs))) == len(jobs)
    assert {"dsmoe-seed0", "dsmoe-seed1", "no_sap-seed0", "num_experts1-seed0"} <= set(names(jobs))
    # The default values are DSMOE's own row.
    assert not {"num_experts3-seed0", "rank2-seed0"} & set(names(jobs))
    assert not {"no_sap-seed1", "references-seed1"} & set(names(jobs))


def test_one_teacher_serves_all_seeds_of_the_small_budget():
    jobs = {job.name: job for job in plan.make_jobs(["table2"], CONFIG, SMALL)}
    assert [name for name in jobs if name.startswith("teacher")] == ["teacher-seed0"]
    assert jobs["dsmoe-seed1"].teacher == "teacher-seed0"
    assert jobs["dsmoe-seed1"].experiment.stage_seed("teacher") == 0
    assert jobs["dsmoe-seed1"].experiment.stage_seed("student") == 1
    assert list(jobs).index("teacher-seed0") < list(jobs).index("dsmoe-seed0")


def test_every_seed_and_day_has_its_teacher_in_the_full_budget():
    jobs = {job.name: job for job in plan.make_jobs(["table2"], CONFIG, FULL)}
    job = jobs["dsmoe-seed2-drop2"]
    assert job.teacher == "teacher-seed2-drop2"
    assert job.experiment.data.drop_last_days == 2
    assert jobs[job.teacher].experiment.data.drop_last_days == 2
    assert jobs["references-seed0-drop2"].experiment.data.drop_last_days == 2


def test_what_learns_from_no_teacher_needs_none():
    jobs = {job.name: job for job in plan.make_jobs(["table4"], CONFIG, SMALL)}
    assert jobs["no_distill-seed0"].teacher == ""
    assert jobs["no_sap-seed0"].teacher == "teacher-seed0"


def test_a_teacher_that_several_learn_from_is_evaluated_once():
    jobs = plan.make_jobs(plan.PRINTED, CONFIG, SMALL)
    taught = [job for job in jobs if job.teacher]
    evaluating = [job.name for job in taught if job.experiment.eval.teacher_test_queries]
    assert evaluating == ["dsmoe-seed0", "dsmoe-seed1"]
    assert {"no_sap-seed0", "rank1-seed0"} <= {job.name for job in taught}


def test_a_row_that_changes_its_teacher_has_a_teacher_of_its_own():
    jobs = {job.name: job for job in plan.make_jobs([plan.DECIDED], CONFIG, FULL)}
    assert jobs["shared_item_tower-seed1"].teacher == "teacher-seed1"
    assert jobs["row_sparse-seed0"].teacher == ""
    assert jobs["row_sparse-seed0"].experiment.optim.embedding == "row_sparse"
    # It differs in that alone from the row above it.
    assert jobs["undistilled-seed0"].overrides.items() < jobs["row_sparse-seed0"].overrides.items()
    for name in ("same_fields", "paper_exact"):
        job = jobs[f"{name}-seed2"]
        assert job.teacher == f"teacher_of_{name}-seed2"
        assert list(jobs).index(job.teacher) < list(jobs).index(job.name)
        assert job.experiment.eval.teacher_test_queries > 0
        first, second = (
            fingerprint.of_stage(c.experiment, stage="teacher") for c in (job, jobs[job.teacher])
        )
        assert first == second
    assert not any(job.dropped_days for job in jobs.values())


def test_every_job_is_one_that_the_library_accepts():
    for job in plan.make_jobs(plan.TABLES, CONFIG, SMALL):
        assert job.experiment.seed == job.seed
        assert set(job.components) <= set(numerics.VERSIONS)


def test_a_figures_rows_are_its_values_in_order():
    assert [row.label for row in plan.systems_of("fig3", CONFIG)] == ["1", "2", "4", "8", "16"]
    assert [row.name for row in plan.systems_of("fig3", CONFIG)][1] == "dsmoe"


def test_all_is_what_the_paper_prints_and_in_the_full_budget_more(capsys, tmp_path):
    def count(*arguments):
        assert command_line.main(["run", *arguments, "--list", f"--dir={tmp_path}"]) == 0
        return int(capsys.readouterr().out.splitlines()[-1].split()[2])

    assert count("all") == len(plan.make_jobs(plan.PRINTED, CONFIG, SMALL))
    assert count("all", plan.DECIDED) == len(plan.make_jobs(plan.TABLES, CONFIG, SMALL))
    assert count("all", "--budget=full") == len(plan.make_jobs(plan.TABLES, CONFIG, FULL))
    assert count("fig4") == 2


def test_flags_can_be_added():
    fields = {"eval.query_batch": "7"}
    jobs = plan.make_jobs(["table2"], CONFIG, SMALL, overrides=fields)
    assert all(job.experiment.eval.query_batch == 7 for job in jobs)


def test_a_wrong_configuration_is_refused():
    with pytest.raises(load.UsageError, match="unknown token 'sampel'"):
        plan.make_jobs(["table2"], "configs/kuairand.py:sampel", SMALL)


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
        plan.systems_of("fig4", config)


def test_the_small_budget_bounds_both_stages_and_lengthens_none():
    experiment = load.load_experiment("configs/kuairand.py", "sample")
    experiment.teacher.max_epochs = 7
    assert plan.BUDGETS["small"].limit(experiment) == {
        "train.max_epochs": 15,
        "train.max_minutes": 3.0,
        "teacher.max_minutes": 3.0,
    }
    assert plan.BUDGETS["full"].limit(experiment) == {}


def test_seeds_and_days_are_adjusted():
    small = plan.BUDGETS["small"]
    assert plan.adjust_budget(small, None, None) == small
    other = plan.adjust_budget(small, 4, "0,2,2")
    assert (other.seeds, other.other_seeds, other.dropped_days) == (4, 4, (0, 2))


@pytest.mark.parametrize(("seeds", "days"), [(0, None), (None, "2,"), (None, "-1")])
def test_what_makes_no_sense_is_refused(seeds, days):
    with pytest.raises(ValueError, match=r"^--(seeds|days): expected"):
        plan.adjust_budget(plan.BUDGETS["small"], seeds, days)
