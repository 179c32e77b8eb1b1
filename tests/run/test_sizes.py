"""Values of training by the size of the data."""

import jax
import pytest

from dsmoe_jax.config import fingerprint, load
from dsmoe_jax.models import registry
from dsmoe_jax.run import sizes


@pytest.mark.parametrize(
    ("positives", "batch", "epochs"),
    [(300, 32, 50), (100_000, 512, 50), (5_000_000, 4096, 20), (2 * 10**8, 4096, 5)],
)
def test_batches_and_epochs_go_with_the_number_of_positives(positives, batch, epochs):
    filled, values = sizes.fill(load.load_config("custom"), positives, 5000)
    assert filled.train.batch_size == -(-batch // jax.device_count()) * jax.device_count()
    assert (filled.train.learning_rate, filled.train.max_epochs) == (1e-3, epochs)
    assert (filled.features.exclude == ("user_id",)) == (positives < 10**6)
    assert values["train.batch_size"] == filled.train.batch_size
    assert not filled.by_size


def test_what_is_set_stays_and_the_given_experiment_too():
    experiment = load.load_config("custom", {"train.learning_rate": 0.25, "eval.k": (3,)})
    before = fingerprint.as_dict(experiment)
    filled, values = sizes.fill(experiment, 1000, 100, given=["train.batch_size"])
    assert (filled.train.learning_rate, filled.eval.k, filled.train.batch_size) == (0.25, (3,), 816)
    assert not {"train.learning_rate", "eval.k", "train.batch_size"} & set(values)
    assert filled.model.output_dim == 64
    assert fingerprint.as_dict(experiment) == before


def test_a_method_keeps_its_recipe_but_for_batches_larger_than_suit():
    experiment = load.load_config("custom:fism")
    recipe = experiment.model.recipe
    filled, values = sizes.fill(experiment, 1000, 100)
    assert filled.train.batch_size == 32 < recipe["batch_size"]
    assert sizes.fill(experiment, 10**8, 100)[0].train.batch_size == recipe["batch_size"]
    kept = {name: value for name, value in recipe.items() if name != "batch_size"}
    assert {name: getattr(filled.train, name) for name in kept} == kept
    assert not {f"train.{name}" for name in kept} & set(values)


@pytest.mark.parametrize("method", ["", *registry.METHOD_TOKENS, *registry.INPUT_TOKENS])
def test_every_method_gets_what_it_has(method):
    filled, _ = sizes.fill(load.load_config(f"custom:{method}"), 1000, 100)
    filled.validate()
    assert getattr(filled.model, "output_dim", 64) == 64
    assert getattr(filled.model, "input_dropout", 0.3) == 0.3


def test_the_hash_is_that_of_the_values():
    experiment = load.load_config("custom")
    filled, values = sizes.fill(experiment, 1000, 100)
    by_hand = load.load_config("custom", {"by_size": False, **values})
    assert fingerprint.config_hash(filled) == fingerprint.config_hash(by_hand)
    experiment.by_size, before = False, fingerprint.config_hash(experiment)
    experiment.by_size = True
    assert fingerprint.config_hash(experiment) == before


def test_one_line_says_what_was_chosen():
    _, values = sizes.fill(load.load_config("custom"), 1000, 100)
    line = sizes.describe(values, 1000)
    assert line.startswith("by_size, for 1,000 positives: train.batch_size=32, train.learning_rate")
    assert "\n" not in line
