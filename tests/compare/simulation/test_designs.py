"""The simulation: its plan, and a small run of every kind of job."""

import dataclasses

import jax
import pytest

from dsmoe_jax import features, runlog
from dsmoe_jax.compare import processes, records, runner
from dsmoe_jax.compare.simulation import designs, page_section
from dsmoe_jax.config import fingerprint, load
from dsmoe_jax.training import train_state
from tests.e2e import commands

TINY = {
    "data.num_users": "240",
    "data.num_items": "120",
    "data.num_creators": "40",
    "data.events_per_user": "12",
    "data.num_days": "12",
    "eval.k": "(10,)",
    "eval.validation_queries": "20",
    "eval.teacher_validation_queries": "20",
    "train.batch_size": "64",
    "train.max_epochs": "1",
    "teacher.max_epochs": "1",
    "teacher.model.expert_dims": "(8,8)",
    "model.hidden_dim": "8",
    "model.output_dim": "4",
}
# One arm of every kind, and both worlds.
FEW = (
    dataclasses.replace(designs.SHIFT, arms=designs.SHIFT.arms[:1]),
    designs.MATCH,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A runner that has run one seed, small."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in commands.ENVIRONMENT.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("simulation")
        work = runner.Runner(designs.make_jobs(FEW, [1], TINY), folder)
        states = work.run(processes.ThisMachine(1))
        assert [state.state for state in states] == ["done"] * len(states), states
    return work


def recall(work, arm, world="match"):
    [found] = page_section.load(work.records, designs.WORLDS[1:])[world][arm]
    return found


def test_every_job_leaves_a_record_of_all_test_queries(finished):
    assert sorted(path.stem for path in finished.records.glob("*.json")) == [
        "match-distilled-seed1",
        "match-student-seed1",
        "match-teacher-seed1",
        "match-truth-seed1",
        "shift-truth-seed1",
    ]
    for job in finished.jobs:
        record = finished.read(job)
        store = finished.store(job)
        assert store.data_hash == record["data_hash"]
        for entry in record["systems"].values():
            queries = [row["queries"] for row in entry["scenarios"].values()]
            assert sum(queries) == len(store.queries("test").rows_QC)
            assert 0 < entry["macro"]["recall@10"] < 1
            assert record["candidates"] == 120


def test_true_scores_bound_their_truncation(finished):
    assert page_section.macro(recall(finished, "truth")) > page_section.macro(
        recall(finished, "truncated")
    )


def test_only_trained_arms_have_parameters(finished):
    for arm in designs.MATCH.arms:
        assert (recall(finished, arm.name).params is None) == (arm.kind == "truth")
    assert recall(finished, "teacher").params != recall(finished, "student").params


def test_a_teacher_is_evaluated_where_its_student_is(finished):
    teacher, student = (recall(finished, arm) for arm in ("teacher", "distilled"))
    assert teacher.record == student.record
    assert student.record["teacher_job"] == "match-teacher-seed1"
    assert teacher.recall != student.recall


def test_students_differ_by_distillation_alone(finished):
    distilled, student = (recall(finished, arm) for arm in ("distilled", "student"))
    assert distilled.params == student.params
    assert distilled.recall != student.recall


def test_finished_jobs_are_reused_and_changed_ones_are_not(finished):
    again = runner.Runner(designs.make_jobs(FEW, [1], TINY), finished.folder)
    assert {state.state for state in again.states} == {"done"}
    changed = {**TINY, "teacher.learning_rate": 1e-4}
    other = runner.Runner(designs.make_jobs(FEW, [1], changed), finished.folder)
    assert {state.state for state in other.states} == {"left"}


def test_questions_name_arms_of_their_world():
    for world in designs.WORLDS:
        names = [arm.name for arm in world.arms]
        assert len(set(names)) == len(names)
        assert all({question.first, question.second} <= set(names) for question in world.questions)


def experiments(seed=3):
    return {job.system.name: job.experiment for job in designs.make_jobs(designs.WORLDS, [seed])}


def test_arms_differ_in_the_students_model_and_distillation_alone():
    for name, experiment in experiments().items():
        whole = load.load_config(
            f"simulation:{name.partition('-')[0]}", {"seed": 3, "data.generator_seed": 3}
        )
        fields, expected = (
            fingerprint.flatten(fingerprint.as_dict(e)) for e in (experiment, whole)
        )
        differing = {key for key in fields if fields[key] != expected[key]}
        allowed = {"model.use_sap", "model.hidden_dim", "model.norm", "loss.distill_weight"}
        assert differing - {"variant"} <= allowed


def test_the_shift_is_learned_without_teacher_and_the_match_with_the_students_fields():
    found = experiments()
    assert all(e.loss.distill_weight == 0 for n, e in found.items() if n.startswith("shift"))
    assert found["match-distilled"].loss.distill_weight == 1
    assert found["match-student"].loss.distill_weight == 0
    teacher = found["match-teacher"].teacher.model
    assert not teacher.use_log_prior and not teacher.collaborative
    assert teacher.attention_sequences == ("creator_history",)


def test_every_seed_has_a_world_of_its_own():
    for job in designs.make_jobs(designs.WORLDS, [1, 2]):
        assert job.seed == job.experiment.seed == job.experiment.data.generator_seed


def test_a_teacher_stands_before_its_student():
    jobs = designs.make_jobs(designs.WORLDS, [1, 2])
    names = [job.name for job in jobs]
    taught = [job for job in jobs if job.teacher]
    assert [job.name for job in taught] == ["match-distilled-seed1", "match-distilled-seed2"]
    assert all(names.index(job.teacher) < names.index(job.name) for job in taught)


def test_published_records_are_of_the_jobs_that_there_are():
    published = designs_records()
    for job in designs.make_jobs(designs.WORLDS, range(1, 6)):
        record = published[job.name]
        assert record["config_hash"] == fingerprint.config_hash(job.experiment)
        assert set(record["numerics"]) == set(job.components)
        assert (record["system"], record["kind"]) == (job.system.name, job.system.kind)


def designs_records():
    folder = commands.ROOT / "docs" / "results" / "records" / "simulation"
    return {path.stem: records.load(path) for path in folder.glob("*.json")}


def count_parameters(world, tokens, store):
    experiment = load.load_config(load.extend(f"simulation:{world.name}", tokens))
    section = experiment.features
    spec = features.select(
        store.spec,
        exclude=section.exclude,
        history_length=section.history_length,
        scenario_history_length=section.scenario_history_length,
    )
    inputs = train_state.example_inputs(spec)
    model = experiment.model.make(spec)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    return runlog.count_parameters(shapes["params"])


@pytest.mark.parametrize("norm", ["", "no_dsbn"])
@pytest.mark.parametrize("world", designs.WORLDS, ids=lambda world: world.name)
def test_the_wide_control_has_as_many_parameters_to_one_percent(finished, world, norm):
    [job] = [job for job in finished.jobs if job.name == f"{world.name}-truth-seed1"]
    store = finished.store(job)
    separator = "," if norm else ""
    ours = count_parameters(world, norm, store)
    control = count_parameters(world, f"no_sap_wide{separator}{norm}", store)
    narrow = count_parameters(world, f"no_sap{separator}{norm}", store)
    assert control["embedding"] == ours["embedding"]
    assert control["dense"] == pytest.approx(ours["dense"], rel=0.01)
    assert narrow["dense"] < 0.95 * ours["dense"]


def test_a_variant_without_a_world_is_refused():
    with pytest.raises(load.UsageError, match="expected a world, shift or match, got"):
        load.load_config("simulation:no_sap")
