"""The serving bundle: a folder of plain arrays and a manifest, which NumPy alone can read.

Owns the format on disk, its hashes and atomic writing. What goes into a bundle is `export.py`'s,
what comes out of it `retriever.py`'s.

    manifest.json                 what follows, for programs; `digest` is the hash of all the rest
    item_vectors.npy              [S, V, D], or [1, V, D] where items do not see the scenario
    items_*.npy, users_*.npy      features and raw ids by row; row 0 is padding, or the unknown user
    vocabulary_<feature>.npy      the raw value of each id, ascending; row 0 is unknown
    user_rows.npy                 [U, C] where each user's events are, columns as in the manifest
    sequence_<name>.npy, _time    what users did, user after user, oldest first
    log_prior.npy                 [S, V] log share of a scenario's clicks
    test_queries.npy              [Q, 2] user row and scenario of the queries of the test days
    test_relevant.npy, _indptr    item ids that these are to find, query after query
    <side>_table_<field>.npy, <side>_dense.npy, <side>_first.npy, ..., linear_*.npy
                                  folded towers, see `towers.py`
    history_*.npy                 a causal history encoder, see `histories.py`
    <side>_tower.stablehlo, variables_<n>.npy
                                  towers that do not fold, see `compiled.py`

Letters: S scenarios, V rows of the corpus (row 0 is padding), U rows of the user table, C columns,
D a vector, Q queries.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from dsmoe_jax import disk, features
from dsmoe_jax.config import fingerprint
from dsmoe_jax.data import manifest as manifest_lib

FORMAT = 2
FILE = "manifest.json"
SIDES = ("user", "item")
# Of the first format, which held no raw ids and cannot be served.
_OLD_FILE = "bundle.json"
_REQUIRED = ("method", "scenarios", "spec", "raw_spec", "columns", "towers", "files")


class Bundle:
    """A bundle, opened for reading; arrays are memory-mapped.

    Attributes:
      root: The bundle's folder.
      manifest: What `manifest.json` holds.
      spec: The features that the model reads.
      raw_spec: All features that users and items have.
    """

    def __init__(self, root: pathlib.Path, manifest: dict[str, Any]):
        self.root, self.manifest = root, manifest
        # All at once: another bundle may take the folder's place while this one is served.
        self._arrays = {
            name.removesuffix(".npy"): _map(root / name)
            for name in manifest["files"]
            if name.endswith(".npy")
        }
        self.spec = features.FeatureSpec.from_json(manifest["spec"])
        self.raw_spec = features.FeatureSpec.from_json(manifest["raw_spec"])

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> "Bundle":
        """Opens the bundle at `path`, after its hashes were checked.

        Args:
          path: The folder.
          verify: Whether to hash every file; else sizes alone are compared.

        Raises:
          ValueError: In one line, when there is no bundle, it is damaged or of another format.
        """
        root = pathlib.Path(path).expanduser()
        manifest = read_manifest(root)
        check_files(root, manifest, verify=verify)
        return cls(root, manifest)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names, which a scenario id indexes."""
        return self.spec.scenarios

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that name the bundle's content."""
        return str(self.manifest["digest"])

    def load(self, name: str) -> np.ndarray:
        """The array `<name>.npy`, memory-mapped and read-only."""
        return self._arrays[name]

    def has(self, name: str) -> bool:
        """Whether it holds the array `<name>.npy`."""
        return name in self._arrays


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a bundle's folder and no store's or run's."""
    try:
        manifest = json.loads((pathlib.Path(path).expanduser() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "towers" in manifest


def read_manifest(root: pathlib.Path) -> dict[str, Any]:
    """The manifest of the bundle in `root`.

    Raises:
      ValueError: When there is none, it is damaged or of another format.
    """
    path = root / FILE
    if not path.is_file():
        found = (
            "one of format 1, which cannot be served" if (root / _OLD_FILE).is_file() else "none"
        )
        raise ValueError(
            f"{root}: expected a bundle with {FILE}, found {found}; make one with dsmoe export"
        )
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise _damaged(path, "JSON", "something else") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise _damaged(path, f"a manifest of format {FORMAT}", "something else")
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected a bundle of format {FORMAT}, got format {manifest['format']}; "
            + (
                "install the release of dsmoe_jax that wrote it, or a later one"
                if manifest["format"] > FORMAT
                else "export it again"
            )
        )
    if manifest.get("digest") != digest(manifest):
        raise _damaged(path, f"digest {str(manifest.get('digest'))[:12]}", "another")
    missing = [name for name in _REQUIRED if name not in manifest]
    if missing:
        raise _damaged(path, f"the key {missing[0]!r}", "none")
    return manifest


def digest(manifest: dict[str, Any]) -> str:
    """The hash of a manifest, and by the hashes in it of all files; its own entry is left out."""
    return fingerprint.of_record(manifest, "digest")


def check_files(root: pathlib.Path, manifest: dict[str, Any], *, verify: bool) -> None:
    """Compares the files of a bundle with its manifest.

    Raises:
      ValueError: Naming the first file that is missing or differs.
    """
    for name, expected in manifest["files"].items():
        path = root / name
        if pathlib.PurePath(name).name != name or not path.is_file():
            raise _damaged(path, f"a file of {expected['bytes']:,} bytes", "none")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise _damaged(path, f"{expected['bytes']:,} bytes", f"{size:,}")
    if not verify:
        return
    # The largest first, so that no core waits long for another; hashing holds no lock.
    names = sorted(manifest["files"], key=lambda name: -manifest["files"][name]["bytes"])
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(lambda name: _hash(root / name), names)
    for name, got in zip(names, hashes, strict=True):
        expected = manifest["files"][name]["sha256"]
        if got != expected:
            raise _damaged(root / name, f"sha256 {expected[:12]}...", f"{got[:12]}...")


def write(
    path: str | os.PathLike[str],
    arrays: dict[str, np.ndarray],
    blobs: dict[str, bytes],
    described: dict[str, Any],
) -> None:
    """Writes a bundle beside its place, then renames it there.

    Args:
      path: The folder; an older bundle there is replaced.
      arrays: What becomes `<name>.npy`.
      blobs: Other files by name.
      described: The manifest, but for format, files and digest.

    Raises:
      ValueError: When `path` holds something that is no bundle.
    """
    root = pathlib.Path(path).expanduser()
    check_place(root)
    with disk.Writing(root), _replacing(root) as partial:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", np.asarray(array, order="C"), allow_pickle=False)
        for name, blob in blobs.items():
            (partial / name).write_bytes(blob)
        files = manifest_lib.fingerprint(sorted(partial.iterdir()))
        _write_manifest(partial, {**described, "files": files})


def extend(
    bundle: Bundle,
    arrays: dict[str, np.ndarray],
    files: dict[str, pathlib.Path],
    described: dict[str, Any],
) -> Bundle:
    """Adds to a bundle, or replaces parts of it; what stays is not copied.

    Args:
      bundle: The bundle; whoever has it open goes on with what it was.
      arrays: What becomes `<name>.npy`.
      files: Other files by name.
      described: Entries of the manifest.

    Returns:
      The bundle as it is then.

    Raises:
      ValueError: When another bundle lies in its folder by now.
    """
    root, names = bundle.root, {*files, *(f"{name}.npy" for name in arrays)}
    _check_unchanged(bundle)
    kept = {n: entry for n, entry in bundle.manifest["files"].items() if n not in names}
    with disk.Writing(root), _replacing(root) as partial:
        for name in kept:
            try:
                os.link(root / name, partial / name)
            except OSError:  # some file systems have no links
                shutil.copy2(root / name, partial / name)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", np.asarray(array, order="C"), allow_pickle=False)
        for name, path in files.items():
            shutil.copy2(path, partial / name)
        added = manifest_lib.fingerprint(sorted(partial / name for name in names))
        _write_manifest(partial, {**bundle.manifest, **described, "files": {**kept, **added}})
        # Else what took its place while files were linked would be lost.
        _check_unchanged(bundle)
    return Bundle.open(root, verify=False)


@contextlib.contextmanager
def _replacing(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which takes the place of `root` at the end, if nothing is raised."""
    partial, old = root.with_name(root.name + ".partial"), root.with_name(root.name + ".old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if root.exists():
            root.rename(old)
        partial.rename(root)
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_unchanged(bundle: Bundle) -> None:
    found = read_manifest(bundle.root)["digest"]
    if found != bundle.digest:
        raise ValueError(
            f"{bundle.root}: expected the bundle that was opened, digest {bundle.digest[:12]}, got "
            f"{found[:12]}: it was exported or changed meanwhile; open it again"
        )


def _write_manifest(folder: pathlib.Path, described: dict[str, Any]) -> None:
    manifest = {**described, "format": FORMAT}
    manifest["digest"] = digest(manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def check_place(root: pathlib.Path) -> None:
    """Refuses a folder that a bundle cannot replace.

    Raises:
      ValueError: When it holds something else.
    """
    is_ours = exists(root) or (root / _OLD_FILE).is_file()
    if root.exists() and not is_ours and not (root.is_dir() and not any(root.iterdir())):
        raise ValueError(
            f"{root}: expected a bundle to replace or nothing, got other files; name another folder"
        )


def _map(path: pathlib.Path) -> np.ndarray:
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    # A plain view: every indexing of a memory map object costs microseconds.
    return np.asarray(mapped)


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: pathlib.Path, expected: str, got: str) -> ValueError:
    return ValueError(
        f"{path}: the bundle is damaged: expected {expected}, got {got}; export it again"
    )
