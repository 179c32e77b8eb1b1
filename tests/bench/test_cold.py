import sys

import pytest

from dsmoe_jax.bench import cold
from tests.bench import small_run


# It starts processes that compile everything anew.
@pytest.mark.slow
def test_parts_of_both_starts_are_told_and_add_up(tmp_path):
    found = small_run.measure(cold, f"--config={small_run.write_config(tmp_path)}", "--rounds=1")
    for cache in ("empty", "warm"):
        parts = found["parts_s"][cache]
        assert list(parts) == [*(part for part, _ in cold.MARKS), cold.LAST]
        assert min(parts.values()) > 0
        assert sum(parts.values()) == pytest.approx(found["seconds"][cache][0])
    lines = cold.describe(found)
    assert lines[1].startswith("  empty compilation cache")
    assert len(lines) == 1 + 2 * 5


def test_a_command_that_ends_early_is_told(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(ValueError, match="ended before its first step"):
        cold.time_start(command, tmp_path, {})
