"""Every configuration file runs whole; the full product of their variants is marked slow."""

import itertools
import json

import pytest

from dsmoe_jax.models import registry
from tests.data.prepare import test_custom
from tests.e2e import commands

ABLATIONS = ("", "no_sap", "no_dsbn", "no_norm", "shared_item_tower", "no_distill")
TEACHERS = ("", "teacher=sap")
RECIPES = ("", "paper_exact")


def check(workdir, *, taught=True):
    results = json.loads((workdir / "results.json").read_text())
    assert 0 <= results["macro"][f"recall@{results['k'][0]}"] <= 1
    assert (results["teacher"] is not None) == taught
    for k in results["k"]:
        assert (workdir / "figures" / f"recall_at_{k}.png").exists()
    return results


def variant_of(*tokens):
    return ",".join(token for token in tokens if token)


def teacher_flags(teacher):
    if teacher == "teacher=sap":
        return ("--config.teacher.model.hidden_dim=8", "--config.teacher.model.output_dim=8")
    return commands.SMALL_MMOE


def test_alimama_runs_on_its_synthetic_twin_and_single_rows_of_large_tables_are_updated(tmp_path):
    arguments = (
        "--config=configs/alimama.py:synthetic,teacher=sap",
        f"--workdir={tmp_path}",
        *commands.SMALL,
        *teacher_flags("teacher=sap"),
        *commands.SMALL_ALIMAMA,
        *commands.NO_BASELINES,
        "--config.train.max_epochs=1",
        "--config.eval.k=(50,100)",
        "--config.optim.embedding=row_sparse",
        "--config.optim.min_rows=100",
        "--config.train.average_decay=0.9",
    )
    commands.run(*arguments)
    results = check(tmp_path)
    assert results["dataset"] == "Alimama (synthetic)"
    assert list(results["scenarios"]) == ["A1", "A2", "A3", "A4"]
    output = commands.run(*arguments, "--config.optim.embedding=dense", status=2)
    assert "optim.embedding: checkpoint 'row_sparse', run 'absent'" in output.splitlines()[-1]


def test_movielens_trains_on_the_next_item_and_ranks_the_whole_catalogue(tmp_path):
    arguments = (
        "--config=configs/movielens.py:synthetic,fuxi_mme",
        f"--workdir={tmp_path}",
        "--config.data.num_users=300",
        "--config.data.num_items=120",
        "--config.data.ratings_per_user=25",
        "--config.features.history_length=12",
        "--config.train.batch_size=32",
        "--config.train.num_negatives=16",
        "--config.train.learning_rate=1e-2",
        "--config.train.max_epochs=30",
        "--config.optim.embedding=row_sparse",
        "--config.optim.min_rows=100",
        "--config.model.output_dim=16",
    )
    commands.run(*arguments)
    results = check(tmp_path, taught=False)
    assert results["dataset"] == "MovieLens-1M (synthetic)" and results["candidates"] == 120
    macro = results["macro"]
    assert macro["recall@10"] == macro["hit_rate@10"]
    assert macro["recall@10"] > 2 * 10 / 120
    assert 1 / 2501 < macro["mrr"] < 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss_balance" in row for row in rows)
    output = commands.run(*arguments, "--config.loss.distill_weight=1.0", status=2)
    assert "expected 0 with FuxiMMEConfig" in output.splitlines()[-1]


# Encoders and losses are tested with every matcher; this takes them through a run.
@pytest.mark.slow
def test_a_student_without_teacher_takes_an_encoded_history_and_another_loss(tmp_path):
    commands.run(
        "--config=configs/kuairand.py:synthetic,no_distill,history=fuxi_mme",
        f"--workdir={tmp_path}",
        *commands.SMALL,
        *commands.SMALL_KUAIRAND,
        *commands.NO_BASELINES,
        "--config.train.batch_size=256",
        "--config.loss.task=softmax",
        "--config.loss.negatives=scenario",
        "--config.loss.uniform_share=0.5",
        "--config.loss.log_q",
        "--config.train.max_epochs=1",
        "--config.eval.k=(50,)",
    )
    check(tmp_path, taught=False)


def test_dsmoe_begins_with_fism_where_it_knows_what_was_shown(tmp_path):
    arguments = (
        "--config=configs/kuairand.py:synthetic,plus,taught",
        f"--workdir={tmp_path}",
        *commands.SMALL,
        *commands.SMALL_KUAIRAND,
        "--config.model.tower_dim=4",
        "--config.model.pretrain_epochs=1",
        "--config.model.pretrain_steps=5",
        "--config.model.teachers=2",
        "--config.train.max_epochs=1",
        "--config.train.decay_epochs=1",
        "--config.eval.remove_seen=shown",
    )
    output = commands.run(*arguments)
    results = check(tmp_path, taught=False)
    # An epoch of its users has four steps, of which there are to be five.
    for stage in ("linear", "second"):
        assert f"{stage} epoch   2" in output and f"{stage} epoch   3" not in output
    assert "third epoch" not in output
    points = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert any(point.get("train/loss_distill", 0) > 0 for point in points)
    assert "all items shown removed" in output
    assert results["time_s"]["pretraining"] > 0
    of_prior = {"weight", "half_life_days", "exposure_weight"}
    for name, own in (
        ("scenario prior", set()),
        ("EASE + scenario prior", {"l2", "clicks_of_exposure"}),
    ):
        assert set(results["references"][name]["settings"]) == own | of_prior


def teach(tmp_path, ranker, *flags):
    commands.run(
        f"--config=configs/kuairand.py:synthetic,teacher={ranker}",
        f"--workdir={tmp_path}",
        *commands.SMALL,
        *commands.SMALL_KUAIRAND,
        "--config.train.max_epochs=1",
        *flags,
    )
    check(tmp_path)


# The ensemble is tested as a model; this takes it through a run.
@pytest.mark.slow
def test_several_rankers_teach_together(tmp_path):
    member = "--config.teacher.model.members"
    teach(
        tmp_path,
        "fused",
        # Most of the time is compilation, which fewer layers shorten.
        f"{member}.mmoe_din.expert_dims=(8,)",
        f"{member}.mmoe_din.tower_dims=(4,)",
        f"{member}.ple.num_levels=1",
        f"{member}.ple.expert_dims=(8,)",
        f"{member}.ple.tower_dims=(4,)",
        f"{member}.star.hidden_dims=(8,)",
        f"{member}.star.aux_dims=(4,)",
        "--config.eval.k=(50,)",
        *commands.NO_BASELINES,
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranker", registry.RANKERS)
def test_every_ranker_teaches(tmp_path, ranker):
    teach(tmp_path, ranker)


def test_the_readmes_own_data_example_runs(tmp_path):
    folder = test_custom.write(tmp_path / "shop")
    commands.run(
        "--config=configs/custom.py",
        f"--config.data.raw_dir={folder}",
        f"--workdir={tmp_path / 'run'}",
        *commands.SMALL,
        *commands.SMALL_MMOE,
        *commands.NO_BASELINES,
        "--config.train.batch_size=16",
        "--config.train.max_epochs=1",
        "--config.eval.k=(5,10)",
        "--config.data.validation_days=4",
        "--config.data.test_days=4",
    )
    results = check(tmp_path / "run")
    assert results["dataset"] == "my shop"
    # What is set stays, what is not is by size.
    train = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["train"]
    assert (train["batch_size"], train["learning_rate"]) == (16, 1e-3)
    assert list(results["scenarios"]) == ["home", "search", "cart"]


def test_alimama_without_its_files_says_what_to_do(tmp_path):
    output = commands.run("--config=configs/alimama.py", f"--workdir={tmp_path}", status=2)
    line = output.splitlines()[-1]
    assert line.startswith("error: ")
    for part in ("raw_sample.csv", "behavior_log.csv", "Ali_Display_Ad_Click", ":synthetic"):
        assert part in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "ablation", "teacher"), list(itertools.product(RECIPES, ABLATIONS, TEACHERS))
)
def test_every_variant_of_kuairand_runs(tmp_path, recipe, ablation, teacher):
    commands.run(
        f"--config=configs/kuairand.py:{variant_of('synthetic', recipe, ablation, teacher)}",
        f"--workdir={tmp_path}",
        *commands.SMALL,
        *teacher_flags(teacher),
        *commands.SMALL_KUAIRAND,
        "--config.train.max_epochs=1",
    )
    check(tmp_path, taught=ablation != "no_distill")


@pytest.mark.slow
@pytest.mark.parametrize(("ablation", "teacher"), list(itertools.product(ABLATIONS, TEACHERS)))
def test_every_variant_of_alimama_runs(tmp_path, ablation, teacher):
    commands.run(
        f"--config=configs/alimama.py:{variant_of('synthetic', ablation, teacher)}",
        f"--workdir={tmp_path}",
        *commands.SMALL,
        *teacher_flags(teacher),
        *commands.SMALL_ALIMAMA,
        "--config.train.max_epochs=1",
        "--config.eval.k=(50,100)",
    )
    check(tmp_path, taught=ablation != "no_distill")
