import pytest

from dsmoe_jax.bench import scale
from dsmoe_jax.capacity import simulated


def count_devices():
    """Of this process and of all, and a number that every process gives its share of."""
    import jax
    from jax.experimental import multihost_utils

    everyone = multihost_utils.process_allgather(jax.numpy.array([jax.process_index()]))
    return jax.local_device_count(), jax.device_count(), everyone.ravel().tolist()


def fail():
    raise ValueError("the shape: expected another")


def test_processes_share_the_simulated_devices():
    found = simulated.run(count_devices, (), devices=4, processes=2)
    assert found == [(2, 4, [0, 1])] * 2


def test_a_failure_in_a_process_is_told():
    with pytest.raises(ValueError, match="the shape: expected another"):
        simulated.run(fail, (), devices=1)


def test_losses_that_differ_are_refused():
    assert scale.compare([[0.5, 0.25], [0.5, 0.250001]]) == pytest.approx(4e-6)
    with pytest.raises(ValueError, match="expected the same on any number of devices"):
        scale.compare([[0.5], [0.51]])
    with pytest.raises(ValueError, match="expected the same"):
        scale.compare([[0.5], [float("nan")]])


def test_the_table_says_that_times_mean_nothing():
    run = {
        "devices": 2,
        "processes": 1,
        "step_ms": 3.0,
        "state_bytes": 2**20,
        "moved_bytes": {"all-reduce": 2**19},
        "losses": [0.5],
    }
    lines = scale.describe(
        {
            "shape": "kuairand",
            "embedding": "dense",
            "positives": 816,
            "runs": [run],
            "loss_difference": 0.0,
        }
    )
    assert "say nothing of speed-up" in lines[1]
    assert lines[3].split()[:5] == ["2", "1", "3.0", "1.0", "0.50"]
