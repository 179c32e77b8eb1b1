"""Own logs prepared by Daft have the bytes of those that polars prepares; the extra is `daft`."""

import dataclasses
import gzip
import importlib.util

import pytest

from dsmoe_jax.data.prepare import custom
from tests.data.prepare import test_cases, test_custom, test_parts


def test_without_the_library_the_engine_is_refused_before_a_file_is_read(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == "daft" else find(wanted)
    )
    raw = test_custom.write(tmp_path / "raw")
    section = dataclasses.replace(test_parts.BASE, raw_dir=str(raw))
    (raw / "log.csv").chmod(0)
    other = dataclasses.replace(section, engine="daft")
    with pytest.raises(ValueError, match=r"^data\.engine=daft: .* pip install '\.\[daft\]'$"):
        other.prepare(str(tmp_path / "store"))
    (raw / "log.csv").chmod(0o600)
    # A store in place serves either engine, with the library or without.
    section.prepare(str(tmp_path / "store"))
    inode = (tmp_path / "store").stat().st_ino
    other.prepare(str(tmp_path / "store"))
    assert (tmp_path / "store").stat().st_ino == inode


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """Prepares by both engines, Daft's events in many parts."""

    def prepare(section):
        polars = test_parts.prepare(section, tmp_path / "polars")
        from dsmoe_jax.data.prepare import own_daft

        monkeypatch.setattr(own_daft, "_PART_ROWS", 100)
        daft = dataclasses.replace(section, engine="daft")
        found = test_parts.prepare(daft, tmp_path / "daft")
        assert sorted(path.name for path in tmp_path.glob("*daft*")) == ["daft"]
        return polars, found

    return prepare


@pytest.mark.slow
@pytest.mark.parametrize("fields", test_parts.CONFIGS.values(), ids=test_parts.CONFIGS)
def test_daft_writes_the_bytes_of_polars(tmp_path, engines, fields):
    raw = test_custom.write(tmp_path / "raw")
    polars, daft = engines(dataclasses.replace(test_parts.BASE, raw_dir=str(raw), **fields))
    assert daft == polars


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gzip", "parquet"])
def test_logs_in_files_of_several_kinds_have_the_same_bytes(tmp_path, engines, kind):
    raw = tmp_path / "raw"
    log = test_custom.make_log()
    # An empty user, and an exposure in no scenario.
    log = log.with_columns(user=log["user"].scatter([5, 600], None))
    log = log.with_columns(page=log["page"].scatter([7, 300], None))
    for i in range(3):
        folder = raw / f"part={i}"
        folder.mkdir(parents=True)
        rows = log[i * 300 : (i + 1) * 300]
        if kind == "parquet":
            rows.write_parquet(folder / "log.parquet")
        else:
            (folder / "log.csv.gz").write_bytes(gzip.compress(rows.write_csv().encode()))
    section = dataclasses.replace(
        test_parts.BASE,
        raw_dir=str(raw),
        log_files=("part=*",),
        scenarios=("home", "search"),
        positive="action == buy",
        exposures=True,
        unknown_users="drop",
    )
    polars, daft = engines(section)
    assert daft == polars


@pytest.mark.slow
@pytest.mark.parametrize("name", test_cases.READ)
def test_a_case_has_the_same_bytes(tmp_path, name):
    test_cases.prepare(name, tmp_path / "polars")
    test_cases.prepare(name, tmp_path / "daft", engine="daft")
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / engine / "store").iterdir()}
        for engine in ("polars", "daft")
    ]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", test_cases.REFUSED)
def test_a_case_is_refused_in_the_same_words(tmp_path, name):
    with pytest.raises(ValueError, match=test_cases.REFUSED[name]) as caught:
        test_cases.prepare(name, tmp_path, engine="daft")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match=r"data\.engine: expected .*polars.*daft.*, got 'spark'"):
        custom.CustomConfig(engine="spark").validate()
