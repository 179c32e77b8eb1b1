"""Stores that were prepared in a folder before, kept beside it by their content.

A model is trained on one content. When raw files or settings change, what is prepared from them
takes the folder, and the store before lies in `<folder>-<12 digits of its data hash>` from then on.
Nothing deletes those; whoever needs one no more may.
"""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

from dsmoe_jax.data import manifest as manifest_lib


def replace(new: pathlib.Path, root: pathlib.Path) -> None:
    """Renames a store into a folder; the one that is there is kept, unless it is damaged."""
    if root.exists():
        _set_aside(root)
    new.rename(root)


def find(root: pathlib.Path, data_hash: str) -> pathlib.Path:
    """The folder of the store with a content: `root`, or one that was there before.

    Raises:
      ValueError: When there is none, or a manifest is damaged.
    """
    for path in (root, _beside(root, data_hash)):
        if manifest_lib.exists(path) and manifest_lib.read(path)["data_hash"] == data_hash:
            return path
    raise ValueError(
        f"{root}: expected the store that the model was trained on, data hash {data_hash[:12]}, "
        "got none; prepare it again from the same raw files"
    )


def bring_back(
    root: str | os.PathLike[str],
    settings: dict[str, Any],
    inputs: Callable[[], dict[str, dict[str, Any]]],
) -> bool:
    """Puts a kept store in its folder again, where one was prepared from these; whether it did.

    Args:
      root: The folder, whose store is kept in turn.
      settings: Those of the preparation.
      inputs: Gives the raw files' `fingerprint`; not asked where nothing is kept.
    """
    folder = pathlib.Path(root)
    for path in _all(folder):
        # Of a damaged one it is not known what it was prepared from.
        with contextlib.suppress(ValueError):
            if manifest_lib.differences(path, settings, inputs()):
                continue
            replace(path, folder)
            return True
    return False


def _set_aside(root: pathlib.Path) -> None:
    target = root.with_name(root.name + ".old")
    if manifest_lib.exists(root):
        # What is damaged is of no use to anybody.
        with contextlib.suppress(ValueError):
            target = _beside(root, manifest_lib.read(root)["data_hash"])
    if target.exists():
        # Its content is kept already.
        target = root.with_name(root.name + ".old")
        shutil.rmtree(target, ignore_errors=True)
    root.rename(target)
    if target.name == root.name + ".old":
        shutil.rmtree(target, ignore_errors=True)


def _beside(root: pathlib.Path, data_hash: str) -> pathlib.Path:
    return root.with_name(f"{root.name}-{data_hash[:12]}")


def _all(root: pathlib.Path) -> list[pathlib.Path]:
    pattern = re.compile(re.escape(root.name) + r"-[0-9a-f]{12}")
    if not root.parent.is_dir():
        return []
    there = sorted(root.parent.iterdir())
    return [path for path in there if pattern.fullmatch(path.name) and manifest_lib.exists(path)]
