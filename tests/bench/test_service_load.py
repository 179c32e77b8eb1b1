import argparse

from dsmoe_jax.bench import service_load
from tests.serving import small_bundle


def test_a_server_is_loaded_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(service_load, "CLIENTS", (1, 3))
    parser = argparse.ArgumentParser()
    service_load.add_options(parser)
    path = small_bundle.write_bundle(tmp_path / "bundle")
    found = service_load.measure(parser.parse_args([str(path), "--requests", "60", "--k", "5"]))
    assert [one["clients"] for one in found["rounds"]] == [1, 3]
    for one in found["rounds"]:
        assert one["failures"] == 0
        assert 0 < one["p50_ms"] <= one["p99_ms"]
    assert found["tower_and_search_ms"] > 0
    assert 0 < found["memory_before_mb"] <= found["memory_after_mb"] + 50
    lines = service_load.describe(found)
    assert lines[0].startswith("scenario feed, k 5, 60 requests each; tower and search alone ")
    assert len(lines) == 5
