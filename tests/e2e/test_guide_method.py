"""The guide's worked example of a method, done word for word in a copy of the project."""

import importlib.util
import re
import shutil

import pytest

from tests.e2e import commands, test_configs
from tests.models import test_every_matcher

GUIDE = (commands.ROOT / "docs" / "guide" / "own-method.md").read_text()


def code_blocks():
    return re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def method_source():
    (source,) = [code for code in code_blocks() if code.startswith('"""The least')]
    return source


@pytest.fixture(scope="module")
def registry_line():
    (code,) = [code for code in code_blocks() if code.startswith("_MATCHERS = (")]
    (line,) = [line for line in code.splitlines() if "linear" in line]
    return f"{line}\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory, method_source, registry_line):
    """A copy of the package and its configurations, with the method added."""
    root = tmp_path_factory.mktemp("project")
    unneeded = shutil.ignore_patterns("__pycache__", "sample")
    for name in ("dsmoe_jax", "configs"):
        shutil.copytree(commands.ROOT / name, root / name, ignore=unneeded)
    matching = root / "dsmoe_jax" / "models" / "matching"
    (matching / "linear.py").write_text(method_source)
    registry = root / "dsmoe_jax" / "models" / "registry.py"
    text = registry.read_text()
    first, matchers = "from dsmoe_jax.models.matching import ", "_MATCHERS: tuple["
    assert text.count(first) == text.count(matchers) == 1
    text = text.replace(first, f"{first}linear\n{first}")
    head, _, tail = text.partition(matchers)
    start, _, entries = tail.partition(" = (\n")
    registry.write_text(f"{head}{matchers}{start} = (\n{registry_line}{entries}")
    return root


def test_the_method_trains_from_the_command_line(project, tmp_path):
    output = commands.run(
        "--config=configs/kuairand.py:synthetic,linear",
        f"--workdir={tmp_path}",
        *(flag for flag in commands.SMALL if "hidden_dim" not in flag),
        *commands.SMALL_KUAIRAND,
        cwd=project,
    )
    assert "user_layer/kernel" in output
    results = test_configs.check(tmp_path, taught=False)
    assert results["variant"] == "synthetic,linear"


CHECKS = [
    value
    for name, value in vars(test_every_matcher).items()
    if name.startswith("test_")
    and value.__code__.co_varnames[: value.__code__.co_argcount] == ("case",)
]


@pytest.fixture(scope="module")
def case(project):
    path = project / "dsmoe_jax" / "models" / "matching" / "linear.py"
    found = importlib.util.spec_from_file_location("linear", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return test_every_matcher.Case(module.LinearConfig(output_dim=5))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_method_keeps_every_promise(check, case):
    check(case)


def test_there_are_promises_to_keep():
    assert len(CHECKS) >= 8
