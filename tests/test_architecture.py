"""The rules of the house that no linter knows, each shown to catch what it forbids."""

import ast
import pathlib
import re
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "dsmoe_jax"

# Where a library may be imported, by the end of the file's path or a folder in it.
HOMES = {
    "faiss": (
        *("retrieval/faiss_index.py", "retrieval/ann.py", "retrieval/choice.py"),
        "bench/million.py",
    ),
    "orbax": ("dsmoe_jax/training/checkpoint.py",),
    "polars": (
        *("data/prepare/", "data/synthetic/", "compare/hits.py", "dsmoe_jax/serving/"),
        "bench/million.py",
    ),
    "matplotlib": ("/figures.py", "compare/report/sweeps.py"),
    "optuna": ("compare/search.py",),
    "submitit": ("compare/cluster.py",),
    "onnx": ("serving/onnx_graph.py", "serving/onnx_nodes.py"),
    "onnxruntime": ("serving/tools.py",),
    "fsspec": ("data/prepare/objects.py",),
    "daft": ("data/prepare/own_daft.py",),
    "lancedb": ("serving/vector_stores.py",),
    "qdrant_client": ("serving/vector_stores.py",),
    "pymilvus": ("serving/vector_stores.py",),
    "torch": ("dsmoe_jax/bench/", "baselines/youtube_dnn.py"),
    "torch_rechub": ("baselines/youtube_dnn.py",),
    "implicit": ("baselines/implicit.py",),
    "lightfm": ("baselines/lightfm.py",),
}
# Where a library may not be imported.
PURE = (
    "dsmoe_jax/nn/",
    "dsmoe_jax/models/",
    "dsmoe_jax/training/losses.py",
    "dsmoe_jax/evaluation/metrics.py",
)
NOT_IN_PURE = ("grain", "absl", "ml_collections")
# Modules of `models` that every method may import. FISM is the linear part of another.
INTERFACES = ("two_tower", "next_item", "fism", "ranker", "joint_ranker")
PRIVATE_PLACES = re.compile(r"/(?:home|root|tmp|Users)/")
# This file names what it forbids.
THIS = pathlib.Path(__file__)


def imports(source: str) -> Iterator[tuple[str, str | None]]:
    """Every imported module, with the name taken from it where there is one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def find_homeless_imports(path: str, source: str) -> list[str]:
    """Libraries imported outside the files that may."""
    top = {module.partition(".")[0] for module, _ in imports(source)}
    wrong = [name for name, homes in HOMES.items() if not any(home in path for home in homes)]
    if path.startswith(PURE):
        wrong.extend(NOT_IN_PURE)
    return sorted(top & set(wrong))


def find_methods_imported(path: str, source: str) -> list[str]:
    """Other methods that a method imports."""
    if not re.match(r"dsmoe_jax/models/(matching|ranking)/(?!__init__)", path):
        return []
    methods = set()
    for module, name in imports(source):
        parts = f"{module}.{name}".split(".") if name else module.split(".")
        if parts[:2] != ["dsmoe_jax", "models"]:
            continue
        own = pathlib.PurePath(path).stem + "_"
        if len(parts) < 4 or not (parts[3] in INTERFACES or parts[3].startswith(own)):
            methods.add(".".join(parts))
    return sorted(methods)


def find_imported_names(path: str, source: str) -> list[str]:
    """Imports from inside the package that are relative, or of something that is no module.

    The package itself may offer names of its API.
    """
    wrong = []
    if path == "dsmoe_jax/__init__.py":
        return wrong
    for module, name in imports(source):
        if module.startswith("."):
            wrong.append(module)
        elif module.partition(".")[0] == "dsmoe_jax" and name:
            target = ROOT.joinpath(*module.split("."), name)
            if not (target.is_dir() or target.with_suffix(".py").is_file()):
                wrong.append(f"{module}.{name}")
    return wrong


def find_broad_handlers(path: str, source: str) -> list[str]:
    """Handlers of every exception."""
    return [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    ]


def find_skips(path: str, source: str) -> list[str]:
    """Tests that may not run, or may fail unnoticed."""
    # The words of the rule itself; this file is the one that may say them.
    names = {"skip", "skipif", "xfail", "importorskip", "SkipTest"}
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr in names
    ]


def find_private_places(path: str, text: str) -> list[str]:
    """Mentions of folders that only a developer's machine has."""
    return PRIVATE_PLACES.findall(text)


def list_files(*patterns: str) -> list[pathlib.Path]:
    """Files of the project that match, of which there must be some for each pattern."""
    found = []
    for pattern in patterns:
        files = sorted(path for path in ROOT.glob(pattern) if path.is_file())
        assert files, pattern
        found.extend(files)
    return found


def violations(find: Callable[[str, str], list[str]], files: list[pathlib.Path]) -> dict:
    """What a rule finds, by file."""
    found = {}
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        wrong = find(path, file.read_text(encoding="utf-8"))
        if wrong:
            found[path] = wrong
    return found


@pytest.mark.parametrize(
    "find", [find_homeless_imports, find_methods_imported, find_imported_names, find_broad_handlers]
)
def test_package_keeps_the_rule(find: Callable[[str, str], list[str]]) -> None:
    assert violations(find, list_files("dsmoe_jax/**/*.py")) == {}


def test_no_test_skips_itself() -> None:
    files = [path for path in list_files("tests/**/*.py") if path != THIS]
    assert violations(find_skips, files) == {}


def test_nothing_mentions_a_developers_folders() -> None:
    files = list_files(
        "dsmoe_jax/**/*.py", "tests/**/*.py", "launch/*", ".ci/run", "pyproject.toml"
    )
    files += [*ROOT.glob("configs/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    files.remove(THIS)
    assert violations(find_private_places, files) == {}


# Texts that the rules must refuse: each is read by its rule and never run.
@pytest.mark.parametrize(
    ("find", "path", "text"),
    [
        (find_homeless_imports, "dsmoe_jax/evaluation/evaluators.py", "import faiss"),
        (
            find_homeless_imports,
            "dsmoe_jax/training/loop.py",
            "def f():\n  import orbax.checkpoint as o",
        ),
        (find_homeless_imports, "dsmoe_jax/data/store.py", "from polars import col"),
        (find_homeless_imports, "dsmoe_jax/runlog.py", "import matplotlib.pyplot as plt"),
        (find_homeless_imports, "dsmoe_jax/baselines/builtin.py", "import implicit.als"),
        (find_homeless_imports, "dsmoe_jax/nn/mlp.py", "from absl import flags"),
        (find_homeless_imports, "dsmoe_jax/models/ranking/a.py", "import grain.python"),
        (find_homeless_imports, "dsmoe_jax/training/losses.py", "import ml_collections"),
        (
            find_methods_imported,
            "dsmoe_jax/models/matching/a.py",
            "from dsmoe_jax.models.matching import dsmoe",
        ),
        (
            find_methods_imported,
            "dsmoe_jax/models/matching/a.py",
            "from dsmoe_jax.models.ranking.mmoe_din import Tower",
        ),
        (
            find_methods_imported,
            "dsmoe_jax/models/ranking/a.py",
            "import dsmoe_jax.models.matching",
        ),
        (find_imported_names, "dsmoe_jax/training/loop.py", "from dsmoe_jax.batch import Batch"),
        (find_imported_names, "dsmoe_jax/training/loop.py", "from . import batch"),
        (find_broad_handlers, "dsmoe_jax/a.py", "try:\n  f()\nexcept Exception:\n  pass"),
        (find_broad_handlers, "dsmoe_jax/a.py", "try:\n  f()\nexcept:\n  pass"),
        (find_skips, "tests/a.py", "@pytest.mark.skipif(True)\ndef test(): pass"),
        (find_skips, "tests/a.py", "jax = pytest.importorskip('jax')"),
        (find_private_places, "README.md", "cd /home/somebody/project"),
        (find_private_places, "launch/local.sh", "log=/tmp/log"),
    ],
)
def test_rule_catches_what_it_forbids(
    find: Callable[[str, str], list[str]], path: str, text: str
) -> None:
    assert find(path, text)


@pytest.mark.parametrize(
    ("find", "path", "text"),
    [
        (find_homeless_imports, "dsmoe_jax/retrieval/faiss_index.py", "import faiss"),
        (
            find_homeless_imports,
            "dsmoe_jax/training/checkpoint.py",
            "import orbax.checkpoint as ocp",
        ),
        (find_homeless_imports, "dsmoe_jax/data/prepare/kuairand.py", "import polars as pl"),
        (find_homeless_imports, "dsmoe_jax/data/pipeline.py", "import grain.python as grain"),
        (find_homeless_imports, "dsmoe_jax/baselines/implicit.py", "import implicit.als"),
        (
            find_methods_imported,
            "dsmoe_jax/models/matching/a.py",
            "from dsmoe_jax.models.matching import two_tower",
        ),
        (
            find_methods_imported,
            "dsmoe_jax/run/run.py",
            "from dsmoe_jax.models.matching import dsmoe",
        ),
        (
            find_imported_names,
            "dsmoe_jax/training/loop.py",
            "from dsmoe_jax import batch as batch_lib",
        ),
        (find_imported_names, "dsmoe_jax/training/loop.py", "from dsmoe_jax.data import pipeline"),
        (find_private_places, "README.md", "<workdir>/store and --workdir /runs/work/x"),
    ],
)
def test_rule_lets_pass_what_is_allowed(
    find: Callable[[str, str], list[str]], path: str, text: str
) -> None:
    assert find(path, text) == []


def test_no_catch_all_modules() -> None:
    names = {path.stem for path in PACKAGE.glob("**/*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}
