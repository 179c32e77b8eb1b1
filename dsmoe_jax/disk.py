"""Room on the disk: allocated before a file is written, and one line where there is none."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

# What a write says when the disk, the user's share of it or the file's limit is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FullDiskError(OSError):
    """No room for a file: its name, and the bytes needed and free."""


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], num_bytes: int | None = None) -> Iterator[None]:
    """Says in one line that there is no room, when the block that writes a file or folder says so.

    Args:
      path: What is written.
      num_bytes: Bytes that it needs, where they are known.

    Raises:
      FullDiskError: In place of the library's own error.
    """
    try:
        yield
    except FullDiskError:
        raise
    except OSError as error:
        if not is_full(error):
            raise
        raise full(path, num_bytes) from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that there is no room, or was caused by one that does."""
    while error is not None:
        if isinstance(error, FullDiskError) or getattr(error, "errno", None) in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def full(path: str | os.PathLike[str], num_bytes: int | None = None) -> FullDiskError:
    """The error of a file or folder that there is no room for."""
    place = pathlib.Path(path).absolute()
    while not place.exists():
        place = place.parent
    needed = "more" if num_bytes is None else f"{num_bytes:,}"
    return FullDiskError(
        f"{path}: the disk is full, or the limit of a file is reached: expected room for {needed} "
        f"bytes, got {shutil.disk_usage(place).free:,} free; make room and run the same command "
        "again"
    )


def allocate(descriptor: int, num_bytes: int) -> None:
    """Takes room for the first bytes of an open file, so that writing them cannot fail later.

    Raises:
      OSError: When there is no room.
    """
    if not num_bytes:
        return
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        # File systems that cannot allocate are asked by the write itself.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV):
            raise
