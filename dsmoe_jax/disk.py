"""Room on the disk: allocated before a file is written, and one line where there is none."""

import errno
import os
import pathlib
import shutil

# What a write says when the disk, the user's share of it or the file's limit is full; libraries
# that are not written in Python keep the text alone.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = (*(os.strerror(number) for number in _FULL), " requested and ")  # the last is NumPy's


class FullDiskError(OSError):
    """No room for a file: its name, and the bytes needed and free."""


class Writing:
    """Says in one line that there is no room, whatever error the block that writes says it with."""

    def __init__(self, path: str | os.PathLike[str], num_bytes: int | None = None):
        """Nothing is done yet.

        Args:
          path: The file or folder that is written.
          num_bytes: Bytes that it needs, where they are known.
        """
        self._path, self._num_bytes = path, num_bytes

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, FullDiskError) and is_full(error):
            raise full(self._path, self._num_bytes) from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that there is no room, or comes from one that does."""
    while error is not None:
        if isinstance(error, FullDiskError) or getattr(error, "errno", None) in _FULL:
            return True
        if any(text in str(error) for text in _TEXTS):
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
