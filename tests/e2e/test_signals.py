"""Ctrl-C and SIGTERM before training: one line and a status, however early and however often."""

import pathlib
import signal

import pytest

from tests.e2e import commands

CONFIG = """
import dataclasses, os, signal, sys
from dsmoe_jax.config import schema

def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "orbax":
            try:
                {at_import}
            except BaseException:  # as imports with a fallback do
                pass

@dataclasses.dataclass
class Data(schema.DataConfig):
    def prepare(self, store_dir):
        print("preparing", flush=True)
        try:
            {at_work}
        finally:
            {at_cleanup}
        raise ValueError("went on")

@dataclasses.dataclass
class Matcher(schema.MatcherConfig):
    pass

def get_config(variant):
    sys.meta_path.insert(0, Finder())
    return schema.Experiment(
        dataset="stub", data=Data(), model=Matcher(), teacher=schema.TeacherConfig(), variant=""
    )
"""
BOTH = (signal.SIGINT, signal.SIGTERM)


def end(folder: pathlib.Path, **places: str) -> str:
    """What a run says that gets its signals at these places."""
    given = dict.fromkeys(("at_import", "at_work", "at_cleanup"), "pass") | places
    (folder / "stub.py").write_text(CONFIG.format(**given))
    output = commands.run(
        f"--config={folder / 'stub.py'}", f"--workdir={folder / 'run'}", status=130
    )
    return output.removeprefix("preparing\n")


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_during_imports_is_one_line_and_is_not_swallowed(tmp_path, number):
    output = end(tmp_path, at_import=f"send({int(number)})")
    assert output == "interrupted; what was saved before stays\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", BOTH)
def test_a_second_signal_while_the_first_cleans_up_is_one_line(tmp_path, number):
    output = end(tmp_path, at_work=f"send({int(number)})", at_cleanup="send(signal.SIGINT)")
    assert output == "interrupted; what was saved before stays\n"


def test_one_signal_lets_the_work_clean_up(tmp_path):
    output = end(tmp_path, at_work="send(signal.SIGINT)", at_cleanup="print('cleans up')")
    assert output == "cleans up\ninterrupted; what was saved before stays\n"
    # The folder is free again, and holds nothing: nothing was saved before.
    assert not [*tmp_path.glob("run/*")]
