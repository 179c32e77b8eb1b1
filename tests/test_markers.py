"""Markers: every test has one kind, and files say where they belong."""

import pathlib

import pytest

from tests import conftest


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("config/test_schema.py", "unit"),
        ("data/prepare/test_read.py", "unit"),
        ("data/synthetic/test_world.py", "model"),
        ("retrieval/test_index.py", "unit"),
        ("retrieval/test_exact.py", "model"),
        ("e2e/test_run.py", "e2e"),
    ],
)
def test_the_longest_start_of_a_path_decides(file: str, kind: str) -> None:
    assert conftest.kind_of(pathlib.Path(conftest.__file__).parent / file) == kind


def test_every_start_names_files_that_exist() -> None:
    folder = pathlib.Path(conftest.__file__).parent
    assert [start for start in conftest._KINDS if not list(folder.glob(f"{start}*"))] == []
