import dataclasses
import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from dsmoe_jax import features, runlog
from dsmoe_jax.data import pipeline
from dsmoe_jax.models.matching import perscen
from dsmoe_jax.training import checkpoint, interrupt, optimizer, sharding, train_state
from dsmoe_jax.training import loop as train
from tests import tiny

BATCH = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("train") / "store")


class Trainer:
    """Everything a stage needs, on the tiny store."""

    def __init__(
        self,
        store,
        workdir,
        *,
        devices=None,
        max_epochs=2,
        learning_rate=1e-2,
        stop_step=0,
        **changes,
    ):
        workdir.mkdir(exist_ok=True)
        self.workdir = workdir
        self.losses = []
        spec = features.select(
            store.spec, exclude=("user_id",), history_length=4, scenario_history_length=3
        )
        self.mesh = sharding.make_mesh(devices)
        model = tiny.make_matcher(spec)
        self.log = runlog.RunLog(workdir, is_main=True)
        self.stop = StopAt(stop_step) if stop_step else interrupt.Interrupt()
        self.setting = train.Setting(
            mesh=self.mesh,
            corpus=sharding.put_replicated(self.mesh, pipeline.read_corpus(store, spec)),
            source=pipeline.BatchSource(
                store, spec, seed=1, batch_size=BATCH, max_epochs=max_epochs
            ),
            key=jax.random.key(5),
            num_negatives=2,
            steps_per_report=1,
            steps_per_dispatch=1,
            every_steps=changes.pop("every_steps", 0),
            log=self.log,
            stop=self.stop,
        )
        self.stage = train.Stage(
            name="student",
            model=model,
            updater=optimizer.Dense(optimizer.make_optimizer(learning_rate, 1e-6)),
            max_epochs=max_epochs,
            patience=10,
            validate=changes.pop("validate", self.rising_score),
            score_name="recall@5",
            **changes,
        )
        self.identity = {"seed": 1}

    def rising_score(self, frozen):
        # The step makes later epochs better, so that the best state is the last one.
        self.losses.append(frozen)
        score = 0.1 * len(self.losses)
        return {"macro": {"recall@5": score}, "scenarios": {"A": {"recall@5": score}}}

    def run(self, identity=None):
        checkpoints = checkpoint.StageCheckpoints(
            self.workdir, "student", identity or self.identity
        )
        try:
            with self.stop:
                return train.train_stage(self.stage, self.setting, checkpoints)
        finally:
            checkpoints.close()
            self.log.close()

    def points(self):
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def curve(self):
        return [point["train/loss"] for point in self.points() if "train/loss" in point]


def assert_same_bits(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


class StopAt(interrupt.Interrupt):
    """Asks the run to end after a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def reached(self, step):
        return step >= self.step


def test_loss_falls_and_one_trace_serves_the_run(store, tmp_path, monkeypatch):
    traces = []
    make = train.train_step.make_train_step

    def counting(*args, **kwargs):
        step = make(*args, **kwargs)

        def counted(*step_args):
            traces.append(1)
            return step(*step_args)

        return counted

    monkeypatch.setattr(train.train_step, "make_train_step", counting)
    trainer = Trainer(store, tmp_path / "run", max_epochs=15, devices=tiny.one_device())
    stage = trainer.stage
    state = train_state.init_state(
        stage.model, stage.updater, key=jax.random.key(1), mesh=trainer.mesh
    )
    taught = train.Distillation(
        stage.model, train_state.freeze(state), weight=1e-3, warmup_epochs=2
    )
    trainer.stage = dataclasses.replace(stage, distillation=taught)
    trainer.run()
    curve = trainer.curve()
    assert np.mean(curve[-3:]) < 0.9 * np.mean(curve[:3])
    assert len(traces) == 1
    # Of the untrained teacher: told in every epoch, learned from after the warm-up.
    last = trainer.points()[-2]
    assert last["train/loss_distill"] > 0
    assert last["train/loss"] > last["train/loss_task"]


def test_waiting_for_data_is_told(store, tmp_path):
    def shares(trainer):
        trainer.run()
        points = [point for point in trainer.points() if "train/loss" in point]
        # The first step compiles.
        return [point["perf/data_wait_share"] for point in points[1:]]

    fast = Trainer(store, tmp_path / "fast", devices=tiny.one_device())
    slow = Trainer(store, tmp_path / "slow", devices=tiny.one_device())
    original = slow.setting.source.__class__.__getitem__

    class Slow(slow.setting.source.__class__):
        def __getitem__(self, step):
            time.sleep(0.1)
            return original(self, step)

    slow.setting.source.__class__ = Slow
    slow_shares, fast_shares = shares(slow), shares(fast)
    assert all(0 <= share <= 1 for share in slow_shares + fast_shares)
    assert np.median(slow_shares) > 0.5
    assert np.median(fast_shares) < np.median(slow_shares)


def test_a_slow_source_costs_nothing_while_the_device_works(store, tmp_path, monkeypatch):
    # Reports fetch metrics, after which the device is idle: here none comes before the last step.
    trainer = Trainer(store, tmp_path / "run", devices=tiny.one_device(), max_epochs=1)
    trainer.setting = dataclasses.replace(trainer.setting, steps_per_report=1000)
    waits = train._Loop._fetch

    class Working:
        def is_ready(self):
            return False

    def fetch(loop, batches, count):
        pending, loop._pending = loop._pending, [(0, 1, {"loss": Working()})]
        group = waits(loop, batches, count)
        loop._pending = pending
        return group

    monkeypatch.setattr(train._Loop, "_fetch", fetch)
    trainer.run()
    assert [p["perf/data_wait_share"] for p in trainer.points() if "train/loss" in p] == [0.0]


def test_steps_taken_several_at_a_time_are_the_same_steps(store, tmp_path):
    trainers = {}
    for most in (1, 3):
        trainer = Trainer(store, tmp_path / f"{most}", max_epochs=2)
        trainer.setting = dataclasses.replace(
            trainer.setting, steps_per_dispatch=most, steps_per_report=4
        )
        trainers[most] = trainer, trainer.run()[0]
    (one, state), (three, others) = trainers.values()
    # Four steps are a group of three and one of one.
    assert one.setting.source.steps_per_epoch > 4
    assert [p["step"] for p in three.points()] == [p["step"] for p in one.points()]
    np.testing.assert_allclose(three.curve(), one.curve(), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5)


def test_a_run_stopped_between_groups_resumes_bit_for_bit(store, tmp_path):
    def start(name, stop_step=None):
        trainer = Trainer(
            store, tmp_path / name, devices=tiny.one_device(), max_epochs=2, stop_step=stop_step
        )
        trainer.setting = dataclasses.replace(
            trainer.setting, steps_per_dispatch=3, steps_per_report=100
        )
        return trainer

    whole, _ = start("whole").run()
    with pytest.raises(interrupt.InterruptedRunError, match="stopped at step 3"):
        start("parts", stop_step=2).run()
    resumed, _ = start("parts").run()
    assert_same_bits(resumed, whole)


def test_eight_devices_give_the_losses_of_one(store, tmp_path):
    one = Trainer(store, tmp_path / "one", devices=tiny.one_device())
    eight = Trainer(store, tmp_path / "eight")
    assert eight.mesh.size == 8
    one.run()
    eight.run()
    np.testing.assert_allclose(eight.curve(), one.curve(), rtol=1e-5)


def test_a_sharded_table_gives_the_losses_of_one_device(store, tmp_path, monkeypatch):
    # No table of a small test is large: lower the bar so that this one is sharded.
    monkeypatch.setattr(sharding, "MIN_SHARDED_ROWS", 1024)
    one = Trainer(store, tmp_path / "one", devices=tiny.one_device())
    eight = Trainer(store, tmp_path / "eight")
    state, _ = eight.run()
    sharded = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.sharding.spec == jax.sharding.PartitionSpec("data")
    ]
    assert len(sharded) == 3, "the item table and its two moments"
    assert all("item_table" in path for path in sharded)
    one.run()
    np.testing.assert_allclose(eight.curve(), one.curve(), rtol=1e-5)


def test_sigterm_saves_and_ends_the_run(store, tmp_path):
    def validate(frozen):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"macro": {"recall@5": 0.5}, "scenarios": {}}

    trainer = Trainer(store, tmp_path / "run", devices=tiny.one_device(), validate=validate)
    steps = trainer.setting.source.steps_per_epoch
    with pytest.raises(
        interrupt.InterruptedRunError, match=f"stopped at step {steps}, state saved"
    ):
        trainer.run()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    second = Trainer(store, tmp_path / "run", devices=tiny.one_device())
    second.run()
    assert len(second.losses) == 1


@pytest.mark.parametrize("stop_step", [3, 6, 9])
def test_interrupted_and_resumed_equals_uninterrupted(store, tmp_path, stop_step):
    whole = Trainer(store, tmp_path / "whole", devices=tiny.one_device())
    state, progress = whole.run()
    first = Trainer(store, tmp_path / "parts", devices=tiny.one_device(), stop_step=stop_step)
    with pytest.raises(
        interrupt.InterruptedRunError, match="state saved; the same command resumes"
    ):
        first.run()
    second = Trainer(store, tmp_path / "parts", devices=tiny.one_device())
    second.losses = list(first.losses)
    resumed_state, resumed_progress = second.run()
    assert_same_bits(state, resumed_state)
    assert resumed_progress.best_score == progress.best_score
    steps = [point["step"] for point in second.points() if "train/loss" in point]
    assert steps == sorted(set(steps))


def test_killed_between_saves_resumes_from_the_last_one(store, tmp_path):
    whole = Trainer(store, tmp_path / "whole", devices=tiny.one_device())
    state, _ = whole.run()
    killed = Trainer(store, tmp_path / "parts", devices=tiny.one_device(), every_steps=2)
    source = killed.setting.source
    original = source.__class__.__getitem__

    class Dying(source.__class__):
        def __getitem__(self, step):
            if step == 9:
                raise OSError("the machine is gone")
            return original(self, step)

    source.__class__ = Dying
    with pytest.raises(OSError, match="the machine is gone"):
        killed.run()
    second = Trainer(store, tmp_path / "parts", devices=tiny.one_device())
    second.losses = list(killed.losses)
    resumed_state, _ = second.run()
    assert_same_bits(state, resumed_state)


def test_resuming_on_other_devices_sees_the_same_examples_and_losses(store, tmp_path):
    whole = Trainer(store, tmp_path / "whole", devices=tiny.one_device(), max_epochs=5)
    whole.run()
    first = Trainer(store, tmp_path / "parts", max_epochs=5, stop_step=6)
    with pytest.raises(interrupt.InterruptedRunError):
        first.run()
    second = Trainer(store, tmp_path / "parts", devices=jax.devices()[:4], max_epochs=5)
    second.losses = list(first.losses)
    second.run()
    by_step = {point["step"]: point for point in whole.points() if "train/loss" in point}
    compared = [
        (point["train/loss"], by_step[point["step"]]["train/loss"])
        for point in second.points()
        if "train/loss" in point and point["step"] in by_step
    ]
    assert len(compared) >= 10
    np.testing.assert_allclose(*zip(*compared, strict=True), rtol=1e-5)


def test_best_state_is_kept_and_patience_ends_the_stage(store, tmp_path):
    scores = iter([0.2, 0.5, 0.4, 0.3])
    states = []

    def validate(frozen):
        states.append(jax.device_get(frozen.params))
        score = next(scores)
        return {"macro": {"recall@5": score}, "scenarios": {}}

    trainer = Trainer(
        store, tmp_path / "run", devices=tiny.one_device(), max_epochs=9, validate=validate
    )
    trainer.stage = dataclasses.replace(trainer.stage, patience=2)
    state, progress = trainer.run()
    assert len(states) == 4
    assert progress.best_score == 0.5
    assert_same_bits(state.params, states[1])


def test_a_stage_of_fixed_length_keeps_its_end_whatever_its_scores(store, tmp_path):
    scores, states = iter([0.5, 0.2, 0.1]), []

    def validate(frozen):
        states.append(jax.device_get(frozen.params))
        return {"macro": {"recall@5": next(scores)}, "scenarios": {}}

    options = {"devices": tiny.one_device(), "max_epochs": 3, "validate": validate}
    trainer = Trainer(store, tmp_path / "run", **options)
    trainer.stage = dataclasses.replace(trainer.stage, patience=1, keeps_last=True)
    lines = []
    trainer.log.line = lines.append
    state, progress = trainer.run()
    assert len(states) == 3 and progress.best_score == 0.1
    # None of them is called the best.
    epochs = [line.split("macro ")[1].split() for line in lines if "macro" in line]
    assert epochs == [["50.00", "kept"], ["20.00", "kept"], ["10.00", "kept"]]
    assert_same_bits(state.params, states[2])


def test_past_its_time_a_stage_begins_no_epoch_and_keeps_its_best(store, tmp_path):
    trainer = Trainer(store, tmp_path / "run", max_epochs=5, max_train_s=1e-9)
    state, progress = trainer.run()
    # One epoch is needed for a best state.
    assert progress.epochs_evaluated == 1
    assert_same_bits(train_state.freeze(state).params, trainer.losses[0].params)
    # Given more time, the same workdir goes on as if there had been no limit.
    longer = Trainer(store, tmp_path / "run", max_epochs=2)
    longer.losses.append(None)  # its scores rise from where they were
    unlimited = Trainer(store, tmp_path / "other", max_epochs=2)
    assert_same_bits(longer.run()[0].params, unlimited.run()[0].params)


def test_a_finished_stage_trains_no_more(store, tmp_path):
    first = Trainer(store, tmp_path / "run", devices=tiny.one_device())
    state, _ = first.run()
    second = Trainer(store, tmp_path / "run", devices=tiny.one_device())
    again, _ = second.run()
    assert second.losses == []
    assert_same_bits(state, again)


def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(store, tmp_path):
    Trainer(store, tmp_path / "run", devices=tiny.one_device()).run()
    other = Trainer(store, tmp_path / "run", devices=tiny.one_device())
    with pytest.raises(ValueError, match=r"seed: checkpoint 1, run 2\); change the fields back"):
        other.run({"seed": 2})


def test_divergence_names_the_step_and_the_last_good_checkpoint(store, tmp_path):
    trainer = Trainer(
        store, tmp_path / "run", devices=tiny.one_device(), learning_rate=1e4, every_steps=1
    )
    with pytest.raises(
        train.DivergedError, match=r"student: the loss is .* at step \d+ \(epoch 1, batch \d+\); "
    ) as caught:
        trainer.run()
    assert "the last good checkpoint is step" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_auxiliary_loss_is_no_divergence(store, tmp_path):
    trainer = Trainer(store, tmp_path / "run", devices=tiny.one_device(), max_epochs=1)
    config = perscen.PERSCENConfig(hidden_dim=8, output_dim=4, num_codes=4, vq_weight=1e4)
    model = config.make(trainer.stage.model.spec)
    trainer.stage = dataclasses.replace(trainer.stage, model=model)
    _, progress = trainer.run()
    assert progress.epochs_evaluated == 1
    assert trainer.curve()[0] > train.DIVERGED_LOSS


def test_train_metrics_are_given_per_scenario(store, tmp_path):
    trainer = Trainer(store, tmp_path / "run", devices=tiny.one_device())
    trainer.run()
    point = next(point for point in trainer.points() if "train/loss" in point)
    assert {"train/loss_task", "train/A/loss_task", "perf/examples_per_s"} <= set(point)
    parts = [point[f"train/{name}/loss_task"] for name in tiny.SCENARIOS]
    assert min(parts) <= point["train/loss_task"] <= max(parts)


def test_constants_that_the_model_does_not_declare_are_refused(store):
    spec = features.select(store.spec, exclude=(), history_length=4, scenario_history_length=3)
    with pytest.raises(ValueError, match=r"constants: the model declares \{\}, got"):
        train_state.init_state(
            tiny.make_matcher(spec),
            optimizer.Dense(optimizer.make_optimizer(1e-3, 0.0)),
            key=jax.random.key(0),
            mesh=sharding.make_mesh(),
            constants={"log_prior_SV": np.zeros((3, 4), np.float32)},
        )


def test_the_best_state_is_on_disk_before_the_latest_one_that_names_it(
    store, tmp_path, monkeypatch
):
    waited, rename, seen = threading.Event(), os.rename, []

    def late(source, target, **more):
        # A slow disk: the best state is complete when somebody waits for it.
        if "/best/" in str(source):
            waited.wait(timeout=60)
        rename(source, target, **more)

    wait, save = checkpoint.Checkpoint.wait, checkpoint.Checkpoint.save

    def wait_for(of):
        waited.set()
        wait(of)

    def see(of, state, progress):
        if of.path.name == "latest" and progress.best_step:
            seen.append((of.path.parent / "best" / str(progress.best_step)).exists())
            waited.set()
        elif of.path.name == "best":
            waited.clear()
        save(of, state, progress)

    monkeypatch.setattr(os, "rename", late)
    monkeypatch.setattr(checkpoint.Checkpoint, "wait", wait_for)
    monkeypatch.setattr(checkpoint.Checkpoint, "save", see)
    Trainer(store, tmp_path / "run", devices=tiny.one_device()).run()
    assert seen == [True, True]


def judged(store, workdir, scores, max_epochs=3, **changes):
    """A stage whose epochs have these scores, whatever the states."""
    given = iter(scores)

    def validate(frozen):
        score = next(given)
        return {"macro": {"recall@1": score, "recall@5": score}, "scenarios": {}}

    options = {"devices": tiny.one_device(), "max_epochs": max_epochs, "validate": validate}
    trainer = Trainer(store, workdir, **options)
    trainer.stage = dataclasses.replace(trainer.stage, **changes)
    trainer.lines = []
    trainer.log.line = trainer.lines.append
    return trainer


def test_a_best_score_of_another_metric_is_judged_anew(store, tmp_path):
    whole = judged(store, tmp_path / "whole", [0.3, 0.2, 0.1])
    expected, _ = whole.run()
    first = judged(store, tmp_path / "run", [0.9], max_epochs=1)
    first.run()
    # The metric is another, whose scores are lower: the first epoch stays the best of them.
    second = judged(store, tmp_path / "run", [0.3, 0.2, 0.1], score_name="recall@1")
    state, progress = second.run()
    assert_same_bits(state, expected)
    assert (progress.best_score, progress.best_step) == (0.3, whole.setting.source.steps_per_epoch)
    [line] = [line for line in second.lines if "anew" in line]
    assert "validation changed (score 'recall@5' -> 'recall@1')" in line
    assert "is judged anew, 0.9000 -> 0.3000" in line


def test_a_later_epoch_that_is_better_by_the_new_metric_is_chosen(store, tmp_path):
    judged(store, tmp_path / "run", [0.9], max_epochs=1, judged_by={"remove_seen": "none"}).run()
    other = judged(store, tmp_path / "run", [0.1, 0.2, 0.1], judged_by={"remove_seen": "shown"})
    _, progress = other.run()
    assert progress.best_score == 0.2


def test_a_complete_stage_keeps_its_epoch_whatever_is_reported(store, tmp_path):
    state, _ = judged(store, tmp_path / "run", [0.9, 0.5], max_epochs=2).run()
    second = judged(store, tmp_path / "run", [], max_epochs=2, score_name="recall@1")
    again, progress = second.run()
    assert_same_bits(state, again)
    assert progress.best_score == 0.9
    assert any("its epoch, chosen with other fields, stays" in line for line in second.lines)


def test_after_damage_the_same_state_is_trained_again(store, tmp_path):
    options = {"devices": tiny.one_device(), "max_epochs": 3}
    whole = Trainer(store, tmp_path / "whole", **options)
    state, _ = whole.run()
    second = Trainer(store, tmp_path / "run", **options)
    second.run()
    [newest] = sorted((tmp_path / "run/checkpoints/student/latest").iterdir())[-1:]
    for file in newest.glob("state/**/d/*"):
        file.write_bytes(file.read_bytes()[:-9])
    third = Trainer(store, tmp_path / "run", **options)
    third.losses = second.losses[:2]
    assert_same_bits(third.run()[0], state)
    assert len(third.losses) == 3
