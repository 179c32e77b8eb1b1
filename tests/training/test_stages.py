"""Stages before the main one, losses of a model's own, and what a model does after an epoch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.data import pipeline
from dsmoe_jax.models import registry
from dsmoe_jax.training import (
    interrupt,
    optimizer,
    sharding,
    streams,
    train_state,
    train_step,
)
from tests import tiny
from tests.training import test_loop


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("stages") / "store")


class Counting(tiny.TinyMatcher):
    """Counts its epochs, draws a number after each, and has losses of its own."""

    has_end_epoch = True

    def setup(self):
        super().setup()
        self.epochs = self.variable("epochs", "count", lambda: jnp.zeros((), jnp.int32))
        self.mark = self.param("mark", lambda key, shape: jnp.zeros(shape), (1,))

    def embed_user(self, users, scenario_B, *, train):
        user_BMD, _ = super().embed_user(users, scenario_B, train=train)
        return user_BMD + 0 * self.mark[None, None], {"size": 0.25 * (user_BMD**2).mean()}

    def end_epoch(self):
        self.epochs.value = self.epochs.value + 1
        self.put_variable("params", "mark", jax.random.normal(self.make_rng("dropout"), (1,)))
        return {"epochs": self.epochs.value}

    def norm_loss(self, users, items, scenario_B, *, train):
        user_BMD, aux = self.embed_user(users, scenario_B, train=train)
        item_BGD, _ = self.embed_item(items, scenario_B, train=train)
        assert item_BGD.shape[:2] == (len(scenario_B), 3)
        return jnp.square(jnp.linalg.norm(user_BMD[:, 0], axis=-1, keepdims=True) - 1), aux


def make_trainer(store, workdir, **changes):
    trainer = test_loop.Trainer(store, workdir, devices=tiny.one_device(), **changes)
    model = Counting(trainer.stage.model.spec)
    trainer.stage = dataclasses.replace(trainer.stage, model=model)
    return trainer


def test_an_auxiliary_loss_is_added_and_told(store, tmp_path):
    trainer = make_trainer(store, tmp_path / "run", max_epochs=1)
    trainer.run()
    for point in trainer.points():
        if "train/loss" in point:
            whole = point["train/loss_task"] + point["train/loss_size"]
            assert point["train/loss_size"] > 0
            assert point["train/loss"] == pytest.approx(whole, rel=1e-6)


def test_end_of_epoch_changes_parameters_and_state_once_an_epoch(store, tmp_path):
    trainer = make_trainer(store, tmp_path / "run", max_epochs=3)
    marks = []

    def validate(frozen):
        # Now: the next step takes the parameters' memory.
        marks.append(float(frozen.params["mark"][0]))
        return trainer.rising_score(frozen)

    trainer.stage = dataclasses.replace(trainer.stage, validate=validate)
    state, _ = trainer.run()
    assert state.model_state["epochs"]["count"] == 3
    assert len({*marks, 0.0}) == 4
    assert [p["train/epochs"] for p in trainer.points() if "train/epochs" in p] == [1, 2, 3]


def test_only_a_declared_end_of_epoch_is_called(store):
    class Quiet(Counting):
        has_end_epoch = False

    class Heir(Counting):
        pass

    spec = pipeline.features.select(
        store.spec, exclude=(), history_length=4, scenario_history_length=3
    )
    mesh = sharding.make_mesh(tiny.one_device())
    for model, is_called in ((Quiet(spec), False), (Heir(spec), True)):
        updater = optimizer.Dense(optimizer.make_optimizer(1e-3, 0.0))
        state = train_state.abstract_state(model, updater, mesh=mesh)
        assert (train_step.make_end_epoch(model, mesh, state) is not None) == is_called


def test_every_stage_has_a_random_stream_of_its_own():
    names = ["teacher", "student", "contrast", "continue", "teach", "students", "pretrain", "next"]
    names += [
        stage.name for method in registry.MATCHERS.values() for stage in method().pretraining()
    ]
    found = {name: streams.of_stage(name) for name in names}
    assert len(set(found.values())) == len(found)
    # Those of published records, the first four letters.
    assert found["teacher"] == int.from_bytes(b"teac", "little")
    assert found["student"] == int.from_bytes(b"stud", "little")
    assert found["contrast"] == int.from_bytes(b"cont", "little")


def test_end_of_epoch_is_the_same_after_a_resumption(store, tmp_path):
    whole, _ = make_trainer(store, tmp_path / "whole", max_epochs=3).run()
    first = make_trainer(store, tmp_path / "parts", max_epochs=3)
    per_epoch = first.setting.source.steps_per_epoch
    stopping = make_trainer(store, tmp_path / "parts", max_epochs=3, stop_step=per_epoch + 2)
    with pytest.raises(interrupt.InterruptedRunError):
        stopping.run()
    second = make_trainer(store, tmp_path / "parts", max_epochs=3)
    second.losses = list(stopping.losses)
    resumed, _ = second.run()
    test_loop.assert_same_bits(whole, resumed)


def test_a_stage_may_train_on_a_loss_of_the_model(store, tmp_path):
    trainer = make_trainer(store, tmp_path / "run", max_epochs=10)
    trainer.stage = dataclasses.replace(
        trainer.stage, loss_method="norm_loss", validate=None, patience=10
    )
    state, progress = trainer.run()
    curve = [p["train/loss_task"] for p in trainer.points() if "train/loss_task" in p]
    assert curve[-1] < 0.2 * curve[0]
    # Nothing selects: the last epoch is the best.
    assert progress.epochs_evaluated == 10
    assert int(state.step) == progress.best_step == progress.step


def test_a_stage_starts_from_what_an_earlier_one_trained(store, tmp_path):
    trained, _ = make_trainer(store, tmp_path / "first", max_epochs=1).run()
    frozen = train_state.freeze(trained)
    later = make_trainer(store, tmp_path / "later", max_epochs=1, average_decay=0.9)
    fresh = make_trainer(store, tmp_path / "fresh", max_epochs=1)
    later.stage = dataclasses.replace(later.stage, start_from=lambda: frozen, max_epochs=1)
    state, _ = later.run()
    fresh.run()
    assert later.curve()[0] < 0.95 * fresh.curve()[0]
    assert state.model_state["epochs"]["count"] == 2
    # What is started from is not given away.
    assert np.isfinite(frozen.params["item_table"]).all()


def test_only_the_last_example_of_every_user_can_be_read(store):
    spec = pipeline.features.select(
        store.spec, exclude=(), history_length=4, scenario_history_length=3
    )
    columns, train_NC = store.columns, np.asarray(store.train_NC)
    users = np.unique(train_NC[:, columns["user"]])
    source = pipeline.BatchSource(
        store, spec, seed=0, batch_size=len(users), max_epochs=1, last_only=True
    )
    assert source.steps_per_epoch == 1
    batch = source[0]
    np.testing.assert_array_equal(np.sort(batch.users.sparse_BF[:, 0]), users)
    for user, time_s in zip(batch.users.sparse_BF[:, 0], batch.users.time_B, strict=True):
        own = train_NC[train_NC[:, columns["user"]] == user]
        assert time_s == own[:, columns["time_s"]].max()
