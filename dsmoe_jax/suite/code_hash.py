"""Which source decides a cell's numbers, as a hash: while it stays, a finished cell is done.

Counted is every module of the package that a cell's modules import, directly or not: another
method's file may change, and a new one may come, without a run. Not counted are modules that only
show or store, the suite and the bench, comments, docstrings and layout. Python's own version is
part of the hash, since the parsed form of a file depends on it.
"""

import ast
import functools
import hashlib
import pathlib
import sys
from collections.abc import Iterable

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# They have no say in numbers; the registry imports every method.
UNCOUNTED = frozenset(
    f"dsmoe_jax.{name}" for name in ("export", "figures", "methods", "report", "sections", "stop")
)
_ROOT = PACKAGE.name


def code_hash(modules: Iterable[str]) -> str:
    """Twelve hexadecimal digits for the modules and all of the package that they import.

    Args:
      modules: Names such as `dsmoe_jax.run`; these are counted whatever they are.
    """
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for name in sorted(reachable(modules)):
        digest.update(f"{name} {_digest(_path(name))}\n".encode())
    return digest.hexdigest()[:12]


def reachable(modules: Iterable[str]) -> set[str]:
    """The modules, and all counted ones of the package that they import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [other for other in _imports(_path(name)) if is_counted(other)]
    return found


def is_counted(name: str) -> bool:
    """Whether an imported module may decide numbers."""
    return name not in UNCOUNTED and name.split(".")[1] not in ("suite", "bench")


def _path(name: str) -> pathlib.Path:
    return PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")


@functools.lru_cache
def _imports(path: pathlib.Path) -> tuple[str, ...]:
    """Modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = (name for name in found if name.startswith(f"{_ROOT}."))
    return tuple(sorted(name for name in names if _path(name).is_file()))


@functools.lru_cache
def _digest(path: pathlib.Path) -> str:
    tree = _parse(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
