"""Store manifest: reading it, hashes of files, damage, and when a store is reused.

Owns `manifest.json` as a file. Does not own what preparation puts into it (`data/prepare/`) nor
the arrays beside it (`data/store.py`).
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterable
from typing import Any

import numpy as np

import dsmoe_jax
from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint as config_fingerprint

FORMAT = 1
FILE = "manifest.json"
_REQUIRED = ("spec", "columns", "settings", "inputs", "files", "data_hash", "versions")
# A hash of all else that the manifest holds; stores from before there was one lack it.
_OWN_HASH = "manifest_hash"
_HASH_BLOCK = 1 << 22


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a store, whole or damaged, is at `path`."""
    return (pathlib.Path(path) / FILE).exists()


def fingerprint(paths: Iterable[str | os.PathLike[str]]) -> dict[str, dict[str, Any]]:
    """`{file name: {"bytes", "sha256"}}` of each file, with a progress bar when it takes long.

    Where two share a name all are named by their path below the folder that they share.
    """
    files = [pathlib.Path(path) for path in paths]
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        shared = os.path.commonpath([file.parent for file in files])
        names = [os.path.relpath(file, shared) for file in files]
    found: dict[str, dict[str, Any]] = {}
    total = sum(file.stat().st_size for file in files)
    with runlog.bar(total=total, desc="hash", unit="B", unit_scale=True, delay=2) as bar:
        for name, file in zip(names, files, strict=True):
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while block := stream.read(_HASH_BLOCK):
                    digest.update(block)
                    bar.update(len(block))
            found[name] = {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}
    return found


def differences(
    path: str | os.PathLike[str], settings: dict[str, Any], inputs: dict[str, dict[str, Any]]
) -> list[str]:
    """How the store at `path` differs from what settings and raw files' `fingerprint` would give.

    Returns:
      Readable differences such as "test_days 2 -> 3"; empty when the store can be reused.

    Raises:
      ValueError: When the store's manifest is damaged.
    """
    manifest = read(pathlib.Path(path))
    old, new = manifest["settings"], json.loads(json.dumps(settings))
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    files = manifest["inputs"]
    changed = [n for n in sorted({*files, *inputs}) if files.get(n) != inputs.get(n)]
    return [f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in names] + [
        f"input {name} changed" for name in changed
    ]


def data_hash(files: dict[str, dict[str, Any]]) -> str:
    """64 hexadecimal digits that name the content of all files, from their `fingerprint`."""
    lines = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with a hash of what it holds, by which `read` finds any change."""
    return {**manifest, _OWN_HASH: config_fingerprint.of_record(manifest, _OWN_HASH)}


def versions() -> dict[str, str]:
    """Versions of what wrote a store, for the record: they do not decide whether it is reused."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "polars": importlib.metadata.version("polars"),
        "dsmoe_jax": dsmoe_jax.__version__,
    }


def read(root: pathlib.Path) -> dict[str, Any]:
    """The manifest of the store in `root`.

    Raises:
      ValueError: When there is none, or it is damaged.
    """
    path = root / FILE
    if not path.exists():
        raise ValueError(f"{root}: expected a prepared store with {FILE}, found none")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, "JSON in UTF-8", str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise damaged(path, f"format {FORMAT}", f"format {found!r}")
    missing = [name for name in _REQUIRED if name not in manifest]
    if missing:
        raise damaged(path, f"the key {missing[0]!r}", "none")
    try:
        found = data_hash(manifest["files"])
    except (AttributeError, KeyError, TypeError) as error:
        raise damaged(path, "names, bytes and sha256 of files", repr(error)) from None
    if found != manifest["data_hash"]:
        raise damaged(path, f"data hash {str(manifest['data_hash'])[:12]}", "another")
    own = manifest.get(_OWN_HASH)
    if own is not None and own != config_fingerprint.of_record(manifest, _OWN_HASH):
        raise damaged(path, f"content of hash {str(own)[:12]}", "another")
    return manifest


def check_files(root: pathlib.Path, manifest: dict[str, Any], verify: bool) -> None:
    """Compares the sizes (`verify`: also the hashes) of a store's files with its manifest.

    Raises:
      ValueError: On the first file that is missing or differs.
    """
    for name, expected in manifest["files"].items():
        path = root / name
        if not path.is_file():
            raise damaged(path, f"a file of {expected['bytes']} bytes", "none")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise damaged(path, f"{expected['bytes']} bytes", f"{size}")
    if verify:
        for name, found in fingerprint(root / name for name in manifest["files"]).items():
            expected = manifest["files"][name]["sha256"]
            if found["sha256"] != expected:
                raise damaged(
                    root / name, f"sha256 {expected[:12]}...", f"{found['sha256'][:12]}..."
                )


def damaged(path: pathlib.Path, expected: str, got: str) -> ValueError:
    """The error of a store that is not what was written."""
    return ValueError(
        f"{path}: the store is damaged: expected {expected}, got {got}; delete {path.parent} "
        "and prepare again"
    )
