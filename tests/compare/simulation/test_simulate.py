import dataclasses
import json
import os
import signal

import jax
import pytest

from dsmoe_jax import features, main, runlog
from dsmoe_jax.compare.simulation import designs, simulate
from dsmoe_jax.config import fingerprint, load
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.training import interrupt, train_state
from dsmoe_jax.training import loop as train

TINY = (
    "--config.data.num_users=240",
    "--config.data.num_items=120",
    "--config.data.num_creators=40",
    "--config.data.events_per_user=12",
    "--config.data.num_days=12",
    "--config.eval.k=(10,)",
    "--config.eval.validation_queries=20",
    "--config.eval.teacher_validation_queries=20",
    "--config.train.batch_size=64",
    "--config.train.max_epochs=1",
    "--config.teacher.max_epochs=1",
    "--config.teacher.model.expert_dims=(8,8)",
    "--config.model.hidden_dim=8",
    "--config.model.output_dim=4",
)
# One arm of every kind, and both worlds.
FEW = (
    dataclasses.replace(designs.SHIFT, arms=designs.SHIFT.arms[:1]),
    designs.MATCH,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run of every kind of arm: its folder, the records' folder and the records."""
    folder = tmp_path_factory.mktemp("planted")
    published = folder / "published"
    simulate.run_all(folder / "runs", 1, published, worlds=FEW, arguments=TINY)
    records = {path.stem: json.loads(path.read_text()) for path in published.iterdir()}
    return folder, published, records


def test_every_cell_leaves_a_record_of_all_test_queries(finished):
    folder, _, records = finished
    assert sorted(records) == [
        "match-distilled-seed1",
        "match-student-seed1",
        "match-teacher-seed1",
        "match-truncated-seed1",
        "match-truth-seed1",
        "shift-truth-seed1",
    ]
    for name, record in records.items():
        world = name.split("-")[0]
        store = store_lib.Store.open(folder / "runs" / f"{world}-seed1" / "store")
        assert store.data_hash == record["data_hash"]
        queries = [row["queries"] for row in record["scenarios"].values()]
        assert sum(queries) == len(store.queries("test").rows_QC)
        assert record["candidates"] == 120
        assert 0 < record["macro"]["recall@10"] < 1
        assert record["seed"] == record["data"]["generator_seed"] == 1


def test_true_scores_bound_their_truncation(finished):
    _, _, records = finished
    truth, truncated = (records[f"match-{arm}-seed1"]["macro"] for arm in ("truth", "truncated"))
    assert truth["recall@10"] > truncated["recall@10"]


def test_a_truncation_that_is_wide_enough_is_the_truth(finished, tmp_path):
    folder, _, records = finished
    world = dataclasses.replace(designs.MATCH, arms=designs.MATCH.arms[1:2])
    wide = (*TINY, "--config.model.output_dim=120")
    simulate.run_all(folder / "runs", 1, tmp_path, worlds=(world,), arguments=wide)
    record = json.loads((tmp_path / "match-truncated-seed1.json").read_text())
    assert record["macro"] == pytest.approx(records["match-truth-seed1"]["macro"], abs=0.005)


def test_only_trained_arms_have_parameters_and_epochs(finished):
    _, _, records = finished
    for record in records.values():
        is_trained = record["arm"] in ("teacher", "distilled", "student")
        for key in ("params", "epochs", "validation"):
            assert (record[key] is not None) == is_trained
    assert records["match-teacher-seed1"]["params"] != records["match-student-seed1"]["params"]


def test_students_differ_by_distillation_alone(finished):
    _, _, records = finished
    distilled, student = (records[f"match-{arm}-seed1"] for arm in ("distilled", "student"))
    assert distilled["params"] == student["params"]
    assert distilled["model"] == student["model"]
    assert (
        distilled["macro"] != student["macro"] or distilled["validation"] != student["validation"]
    )


class Recorder:
    """Stands for running a cell: notes which, and can ask the list to stop."""

    def __init__(self, stop_after=None):
        self.names = []
        self._stop_after = stop_after

    def __call__(self, world, arm, experiment, place):
        self.names.append(f"{world.name}-{arm.name}-seed{experiment.seed}")
        if len(self.names) == self._stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        return {
            "config_hash": fingerprint.config_hash(experiment),
            "numerics": simulate.components(experiment, arm),
            "macro": {"recall@50": 0.5},
        }


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(simulate, "run_cell", recorder)
    return recorder


def test_finished_cells_are_reused_and_changed_ones_made_again(finished, recorder):
    folder, published, _ = finished
    simulate.run_all(folder / "runs", 1, published, worlds=FEW, arguments=TINY)
    assert recorder.names == []
    before = (published / "match-teacher-seed1.json").read_text()
    changed = dataclasses.replace(designs.MATCH, arms=designs.MATCH.arms[2:3])
    arguments = (*TINY, "--config.teacher.learning_rate=1e-4")
    simulate.run_all(folder / "runs", 1, published, worlds=(changed,), arguments=arguments)
    assert recorder.names == ["match-teacher-seed1"]
    (published / "match-teacher-seed1.json").write_text(before)


def test_a_stopped_list_continues_with_the_next_cell(monkeypatch, tmp_path):
    first, second = Recorder(stop_after=3), Recorder()
    monkeypatch.setattr(simulate, "run_cell", first)
    with pytest.raises(interrupt.InterruptedRunError, match="the same command continues"):
        simulate.run_all(tmp_path / "runs", 2, tmp_path / "records")
    monkeypatch.setattr(simulate, "run_cell", second)
    simulate.run_all(tmp_path / "runs", 2, tmp_path / "records")
    expected = [
        f"{world.name}-{arm.name}-seed{seed}"
        for seed in (1, 2)
        for world in designs.WORLDS
        for arm in world.arms
    ]
    assert first.names + second.names == expected
    assert len(first.names) == 3


def test_a_trained_cell_without_a_record_is_only_judged_again(finished, monkeypatch, tmp_path):
    # What a killed cell leaves is its workdir without a record.
    folder, _, records = finished
    world = dataclasses.replace(designs.MATCH, arms=designs.MATCH.arms[3:])
    monkeypatch.setattr(train._Loop, "run_epoch", lambda loop: pytest.fail("trained again"))
    simulate.run_all(folder / "runs", 1, tmp_path, worlds=(world,), arguments=TINY)
    for arm in ("distilled", "student"):
        name = f"match-{arm}-seed1"
        assert (
            json.loads((tmp_path / f"{name}.json").read_text())["macro"] == records[name]["macro"]
        )


def test_questions_name_arms_of_their_world():
    for world in designs.WORLDS:
        names = [arm.name for arm in world.arms]
        assert len(set(names)) == len(names)
        assert all({question.first, question.second} <= set(names) for question in world.questions)


def experiments():
    return {
        f"{world.name}-{arm.name}": simulate.make_experiment(world, arm, 3)
        for world in designs.WORLDS
        for arm in world.arms
    }


def test_arms_differ_in_the_students_model_and_distillation_alone():
    for name, experiment in experiments().items():
        world = next(world for world in designs.WORLDS if name.startswith(world.name))
        whole = simulate.make_experiment(world, designs.Arm("", ""), 3)
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
    arm = designs.SHIFT.arms[0]
    seeds = [simulate.make_experiment(designs.SHIFT, arm, seed) for seed in (1, 2)]
    assert [(e.seed, e.data.generator_seed) for e in seeds] == [(1, 1), (2, 2)]


def count_parameters(world, tokens, store):
    experiment = simulate.make_experiment(world, designs.Arm("", "", tokens=tokens), 1)
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
    folder, _, _ = finished
    store = store_lib.Store.open(folder / "runs" / f"{world.name}-seed1" / "store")
    separator = "," if norm else ""
    ours = count_parameters(world, norm, store)
    control = count_parameters(world, f"no_sap_wide{separator}{norm}", store)
    narrow = count_parameters(world, f"no_sap{separator}{norm}", store)
    assert control["embedding"] == ours["embedding"]
    assert control["dense"] == pytest.approx(ours["dense"], rel=0.01)
    assert narrow["dense"] < 0.95 * ours["dense"]


def test_a_variant_without_a_world_is_refused():
    with pytest.raises(load.UsageError, match="expected a world, shift or match, got"):
        main.parse(["", f"--config={simulate.CONFIG}:no_sap"])
