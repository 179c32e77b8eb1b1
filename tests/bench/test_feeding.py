import pytest

from dsmoe_jax.bench import __main__ as command_line
from dsmoe_jax.bench import feeding
from tests.bench import small_run


# The pipeline is tested by itself, and read through by every training run.
@pytest.mark.slow
def test_the_pipeline_and_a_training_epoch_are_measured(tmp_path):
    found = small_run.measure(feeding, f"--config={small_run.write_config(tmp_path)}", "--rounds=2")
    # Batches larger than the data are left out.
    assert list(found["examples_per_s"]) == [64, 816]
    for rate in found["examples_per_s"].values():
        assert 0 < rate["least"] <= rate["median"] <= rate["greatest"]
    assert found["training"]["examples_per_s"] > 0
    assert 0 <= found["training"]["data_wait_share"] <= 1
    lines = feeding.describe(found)
    assert len(lines) == 4
    assert "% of it waiting for data" in lines[-1]


def test_the_interval_that_compiles_does_not_count():
    points = [
        {"step": 10, "perf/examples_per_s": 1.0, "perf/data_wait_share": 0.9},
        {"step": 20, "perf/examples_per_s": 100.0, "perf/data_wait_share": 0.1},
        {"step": 25, "perf/examples_per_s": 25.0, "perf/data_wait_share": 0.4},
    ]
    # One second and two seconds, of which 0.1 and 0.8 waited; ten examples a step.
    found = feeding.summarise(points, batch_size=10)
    assert found == {
        "examples_per_s": pytest.approx(50.0),
        "data_wait_share": pytest.approx(0.3),
    }
    with pytest.raises(ValueError, match="at least two logged points, got 1"):
        feeding.summarise(points[:1], batch_size=10)


def test_a_configuration_that_is_not_there_is_told_in_one_line(capsys):
    assert command_line.main(["pipeline", "--config", "configs/nothing.py"]) == 2
    assert capsys.readouterr().err.startswith("error: --config: no such file")
