"""How variants are read, and what those of the configuration files choose."""

import pytest

from dsmoe_jax.config import load, schema, variants

AXES = {"data": ("sample", "synthetic"), "ablation": ("no_sap",)}


@pytest.mark.parametrize(
    ("variant", "chosen"),
    [
        ("", {}),
        ("no_sap", {"ablation": "no_sap"}),
        ("no_sap,sample", {"data": "sample", "ablation": "no_sap"}),
    ],
)
def test_tokens_are_found_by_axis_in_any_order(variant, chosen):
    assert variants.parse(variant, AXES) == chosen


def test_a_section_takes_values_of_its_own_fields_alone():
    section = schema.CheckpointConfig()
    variants.assign(section, {"every_steps": 3})
    assert section.every_steps == 3
    with pytest.raises(
        ValueError, match=r"CheckpointConfig: .* among bundle, every_steps, got 'steps'"
    ):
        variants.assign(section, {"steps": 4})


@pytest.mark.parametrize(
    ("file", "variant", "expected"),
    [
        ("kuairand", "sample,history=fuxi_mme", "fuxi_mme"),
        ("kuairand", "sample", "mean"),
        ("alimama", "synthetic,history=hstu", "hstu"),
        ("custom", "history=fuxi", "fuxi"),
    ],
)
def test_a_variant_chooses_the_encoder_of_the_history(file, variant, expected):
    experiment = load.load_experiment(f"configs/{file}.py", variant)
    assert experiment.features.history_encoder == expected


@pytest.mark.parametrize(("method", "width"), [("hstu", 50), ("fuxi", 50), ("fuxi_mme", 64)])
def test_sequential_methods_bring_their_recipe(method, width):
    few = load.load_experiment("configs/kuairand.py", f"sample,{method}")
    archive = load.load_experiment("configs/kuairand.py", method)
    for experiment in (few, archive):
        train = experiment.train
        assert (train.batch_size, train.num_negatives, train.learning_rate) == (128, 128, 1e-3)
        assert train.beta_2 == 0.98
        assert experiment.loss.distill_weight == 0
        experiment.validate()
    assert archive.train.weight_decay == 0
    assert archive.model.output_dim == width


@pytest.mark.parametrize(
    ("variant", "name", "width", "hidden", "length"),
    [
        ("ml1m", "MovieLens-1M", 50, 1, 200),
        ("ml1m,fuxi_mme", "MovieLens-1M", 64, 1, 200),
        ("ml20m,fuxi", "MovieLens-20M", 256, 4, 200),
        ("synthetic,hstu", "MovieLens-1M", 50, None, 50),
    ],
)
def test_movielens_has_the_values_of_the_papers(variant, name, width, hidden, length):
    experiment = load.load_experiment("configs/movielens.py", variant)
    experiment.validate()
    assert (experiment.dataset, experiment.model.output_dim) == (name, width)
    assert getattr(experiment.model, "ffn_multiple", None) == hidden
    assert experiment.features.history_length == length
    assert (experiment.eval.k, experiment.eval.mrr_depth) == ((10, 50), 2500)
    assert experiment.train.num_negatives == 128


def test_movielens_without_a_data_set_is_refused():
    with pytest.raises(load.UsageError, match="one of ml1m, ml20m, synthetic, got 'hstu'"):
        load.load_experiment("configs/movielens.py", "hstu")
