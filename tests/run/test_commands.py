"""`dsmoe export` and `dsmoe demo`, and the bundle that a run ends with."""

import json

import pytest

from dsmoe_jax import main
from dsmoe_jax.run import demo
from dsmoe_jax.serving import bundle, indexing, serve
from tests.e2e import commands


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the main command that ends with its bundle."""
    workdir = tmp_path_factory.mktemp("run")
    flags = (*commands.SMALL, *commands.SMALL_KUAIRAND, *commands.NO_BASELINES)
    output = commands.run(
        "--config=configs/kuairand.py:synthetic,no_distill",
        f"--workdir={workdir}",
        *flags,
        "--config.checkpoint.bundle=True",
    )
    assert f"bundle: {workdir}/bundle; user tower" in output and "folded" in output
    return workdir


def test_export_and_the_mode_write_the_bundle_of_the_run(workdir, tmp_path, capsys):
    first = bundle.Bundle.open(workdir / "bundle")
    recorded = json.loads((workdir / "results.json").read_text())
    assert first.manifest["results"]["macro"] == recorded["macro"]
    assert first.manifest["remove_seen"] == "positives"
    assert main.main(["dsmoe", "export", str(workdir), "--out", str(tmp_path / "other")]) == 0
    again = bundle.Bundle.open(tmp_path / "other")
    assert again.manifest["files"] == first.manifest["files"]
    capsys.readouterr()
    assert main.main(["dsmoe", "export", str(tmp_path)]) == 2
    expected = f"error: {tmp_path}/config.json: expected the configuration of a run, found none"
    assert capsys.readouterr().err.startswith(expected)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    assert main.main(["dsmoe", "export", str(workdir), "--out", str(tmp_path / "mine")]) == 2
    assert "expected a bundle to replace or nothing" in capsys.readouterr().err


def test_recommend_prints_the_lists_of_a_user(workdir, capsys):
    arguments = ["dsmoe", "recommend", str(workdir / "bundle"), "--user", "3", "--k", "2"]
    assert main.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "user 3 (known), what they clicked left out"
    assert [line.split(":")[0] for line in lines[1:]] == ["  K1", "  K2", "  K3", "  K4"]
    assert main.main([*arguments, "--out", "x.parquet"]) == 2
    assert "expected either --user, or --users and --out" in capsys.readouterr().err


def test_the_demonstration_trains_once_and_serves(tmp_path, monkeypatch, capsys):
    served = []
    monkeypatch.setattr(serve, "main", lambda arguments: served.append(arguments) or 0)
    monkeypatch.setattr(demo, "CONFIG", "kuairand:synthetic,plus")
    fields = {
        "model.pretrain_epochs": 1,
        "model.pretrain_steps": 0,
        "train.max_epochs": 1,
        "data.num_users": 300,
        "data.num_items": 250,
        "data.num_impressions": 12000,
        "data.validation_days": 5,
        "data.test_days": 5,
        "train.batch_size": 64,
    }
    make = demo.make_bundle
    monkeypatch.setattr(demo, "make_bundle", lambda workdir: make(workdir, **fields))
    arguments = ["dsmoe", "demo", "--workdir", str(tmp_path), "--port"]
    with serve.listen("127.0.0.1", 0) as taken:
        taken.listen()
        for port, expected in (
            (str(taken.getsockname()[1]), "expected a free port of 127.0.0.1"),
            ("70000", "expected 0 to 65535, got 70000"),
        ):
            assert main.main([*arguments, port]) == 2
            told = capsys.readouterr()
            assert "--port" in told.err and expected in told.err and not told.out
    arguments.append("0")
    assert main.main(arguments) == 0
    assert "training on the packaged rows" in capsys.readouterr().out
    assert bundle.read_manifest(tmp_path / "bundle")["indexes"]
    # Neither model nor index is made again.
    monkeypatch.setattr(indexing, "make_index", None)
    assert main.main(arguments) == 0
    assert "training on the packaged rows" not in capsys.readouterr().out
    assert served == [[str(tmp_path / "bundle"), "--port", "0"]] * 2
