"""Raw files in an object store: copies in a local folder, made once for each content.

Owns which objects are copied, and errors of the stores in one line. The files are then read as any
others are (`own_files.py`), which also hashes them: a streamed log would be transferred twice.
"""

import contextlib
import hashlib
import importlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dsmoe_jax import optional, runlog

_PATTERN = frozenset("*?[")
_RECORD = "objects.json"


class _Kind(NamedTuple):
    """A kind of store: the library that reads it, and where it says why it could not."""

    library: str
    extra: str
    failures: tuple[str, ...]


_KINDS = {
    "s3": _Kind("s3fs", "s3", ("botocore.exceptions:BotoCoreError",)),
    "gs": _Kind("gcsfs", "gcs", ("google.auth.exceptions:GoogleAuthError", "aiohttp:ClientError")),
    "az": _Kind("adlfs", "azure", ("azure.core.exceptions:AzureError",)),
}


def is_url(raw_dir: str) -> bool:
    """Whether a folder of raw files is an address and no path."""
    return "://" in raw_dir


def copy(url: str, wanted: Sequence[tuple[str, str]], beside: pathlib.Path) -> pathlib.Path:
    """A local folder with the objects that are wanted, and no others.

    Args:
      url: `s3://bucket/folder`, `gs://...` or `az://...`; credentials are those that the store's
        own tools find in the environment.
      wanted: Pairs of a field of the configuration and its name, pattern or folder below `url`.
      beside: A path beside which the folder lies; objects that are there and unchanged stay.

    Raises:
      ValueError: In one line, on another address, a missing library, object or credential.
    """
    url = url.rstrip("/")
    scheme = url.partition("://")[0]
    if scheme not in _KINDS:
        raise ValueError(
            f"data.raw_dir: expected a folder, or an address s3://, gs:// or az://, got {url!r}"
        )
    kind = _KINDS[scheme]
    optional.require(kind.library, extra=kind.extra, what=f"data.raw_dir {url}: ")
    import fsspec

    name = f"raw-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    with _told(url, kind):
        store, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
        root = root.rstrip("/")
        found = {path: store.ukey(path) for path in _list(store, root, url, wanted)}
        return _mirror(store, root, found, beside.with_name(name))


def _list(store: Any, root: str, url: str, wanted: Sequence[tuple[str, str]]) -> list[str]:
    """Paths of the objects in the store, each once."""
    paths: dict[str, None] = {}
    for field, name in wanted:
        if not name or name.startswith("/") or ".." in pathlib.PurePosixPath(name).parts:
            raise ValueError(f"{field}: expected a name or a pattern below {url}, got {name!r}")
        path = f"{root}/{name.rstrip('/')}"
        is_pattern = bool(_PATTERN & set(name))
        kinds = store.glob(path, detail=True) if is_pattern else {path: {"type": "directory"}}
        inside = [start for start, info in kinds.items() if info["type"] == "file"]
        for start in kinds.keys() - set(inside):
            inside += [one for one in store.find(start) if not one.endswith("/")]
        if not inside:
            raise ValueError(
                f"{field}: expected {url}/{name} to exist, found no object; check "
                "data.raw_dir and the name"
            )
        paths |= dict.fromkeys(inside)
    return sorted(paths)


def _mirror(store: Any, root: str, found: dict[str, str], folder: pathlib.Path) -> pathlib.Path:
    """Copies what is new or changed, and removes what is gone."""
    record = folder.with_name(f"{folder.name}.{_RECORD}")
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = {}
    places = {path: folder / path.removeprefix(f"{root}/") for path in found}
    if folder.is_dir():
        for old in [path for path in folder.rglob("*") if not path.is_dir()]:
            if old not in places.values():
                old.unlink()
    kept = {
        path: key for path, key in found.items() if known.get(path) == key and places[path].exists()
    }
    new = [path for path in found if path not in kept]
    if new:
        runlog.say(f"data.raw_dir: copying {len(new):,} objects to {folder}")
    for path in runlog.bar(new, desc="copy", unit="object", delay=2):
        place = places[path]
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path}: expected a name without '..'; rename the object")
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        try:
            store.get_file(path, str(part))
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
        kept[path] = found[path]
        runlog.replace_text(record, json.dumps(kept))
    return folder


@contextlib.contextmanager
def _told(url: str, kind: _Kind) -> Iterator[None]:
    """What a store's library raises, as one line that names the setting."""
    failures = tuple(
        getattr(importlib.import_module(module), name)
        for module, _, name in (place.partition(":") for place in kind.failures)
    )
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"data.raw_dir: expected {url} to exist, got {_line(error)}") from error
    except PermissionError as error:
        raise ValueError(
            f"data.raw_dir: expected credentials that may list and read {url}, got {_line(error)}"
        ) from error
    except (OSError, *failures) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # Of the local folder, as a full disk.
        raise ValueError(
            f"data.raw_dir: expected to reach {url} with the credentials of this environment, got "
            f"{_line(error)}"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
