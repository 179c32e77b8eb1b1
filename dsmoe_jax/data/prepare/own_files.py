"""Files of an own log: patterns and folders below one folder, and partitions in paths.

Owns which files are read. Does not own their content (`read.py`).
"""

import contextlib
import pathlib
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dsmoe_jax import terminal
from dsmoe_jax.data.prepare import own_config, streams

# What Hive writes for a partition of empty cells.
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Names of a folder's content in a message.
_SHOWN = 6


class Log(NamedTuple):
    """One file of a log.

    Attributes:
      path: Where it is.
      constants: The values that its path states, by column, as `page=home/day=3/part.parquet`.
    """

    path: pathlib.Path
    constants: dict[str, str | None]


def find(section: own_config.LogConfig) -> tuple[list[Log], dict[str, pathlib.Path]]:
    """The logs, and the tables that are named, by "user" and "item".

    Raises:
      ValueError: In one line, when one is missing or is no plain file.
    """
    folder = pathlib.Path(section.raw_dir)
    if not section.raw_dir or not folder.is_dir():
        raise ValueError(
            f"data.raw_dir: expected a folder with {', '.join(section.log_files)}, "
            f"got {section.raw_dir!r}"
        )
    if not section.log_files:
        raise ValueError("data.log_files: expected at least one name or pattern, got none")
    paths: list[pathlib.Path] = []
    for pattern in section.log_files:
        with _naming("data.log_files", pattern):
            found = list(_expand(folder, pattern))
        if not found:
            raise ValueError(
                f"data.log_files: expected {folder / pattern} to exist, found no file"
                f"{_beside(folder)}"
            )
        paths += [path for path in found if path not in paths]
    for path in paths:
        streams.check_file(path)
    tables = {"user": section.users_file, "item": section.items_file}
    named = {side: folder / name for side, name in tables.items() if name}
    for side, path in named.items():
        with _naming(f"data.{side}s_file", tables[side]):
            is_there = path.is_file() or path.exists() or path.is_symlink()
        if not is_there:
            raise ValueError(
                f"data.{side}s_file: expected {path} to exist, found no file{_beside(folder)}"
            )
        streams.check_file(path)
    return [Log(path, partitions(path.relative_to(folder).parts[:-1])) for path in paths], named


@contextlib.contextmanager
def _naming(field: str, value: str) -> Iterator[None]:
    """Says which field holds what is no name or pattern for the system."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as failure:
        reason = failure.strerror if isinstance(failure, OSError) else str(failure)
        if reason and reason.startswith("data."):
            raise
        raise ValueError(
            f"{field}: expected names{' or patterns' if field == 'data.log_files' else ''} below "
            f"data.raw_dir, got {terminal.shorten(value)!r}: {reason}"
        ) from None


def _beside(folder: pathlib.Path) -> str:
    """What a folder holds instead of a file, as the end of a message."""
    names = sorted(path.name for path in folder.iterdir() if path.name[0] not in "._")
    more = ", ..." if len(names) > _SHOWN else ""
    shown = terminal.one_line(", ".join(names[:_SHOWN]))
    return f"; the folder holds {shown}{more}" if names else "; the folder is empty"


def _expand(folder: pathlib.Path, pattern: str) -> Iterator[pathlib.Path]:
    """The files of a pattern, sorted; of a folder all that are no notes of what wrote it."""
    if not pattern or pathlib.PurePath(pattern).is_absolute():
        raise ValueError(
            f"data.log_files: expected names or patterns below data.raw_dir, got {pattern!r}"
        )
    found, named = sorted(folder.glob(pattern)), folder / pattern
    # A name may hold what is a pattern elsewhere, and a link lead nowhere or to itself.
    if not found and (named.is_symlink() or named.exists()):
        found = [named]
    for path in found:
        if not path.is_dir():
            yield path
            continue
        for inside in sorted(path.rglob("*")):
            below = inside.relative_to(path).parts
            if not inside.is_dir() and not any(map(_is_note, below)):
                yield inside


def _is_note(part: str) -> bool:
    """Whether a part of a path is one of what wrote the log; a column may begin with a low line."""
    return part[0] == "." or (part[0] == "_" and "=" not in part)


def partitions(parts: Iterable[str]) -> dict[str, str | None]:
    """The columns that folders named `column=value` state."""
    found: dict[str, str | None] = {}
    for part in parts:
        name, is_one, value = part.partition("=")
        if is_one and name:
            found[urllib.parse.unquote(name)] = (
                None if value == _HIVE_NULL else urllib.parse.unquote(value)
            )
    return found
