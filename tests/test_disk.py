import errno
import os
import re

import pytest

from dsmoe_jax import disk

ERRORS = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    OSError("2091 requested and 992 written"),
    ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code=28]"),
    RuntimeError("No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_no_room_is_one_line_with_bytes_needed_and_free(tmp_path, error):
    path = tmp_path / "not" / "there"
    with pytest.raises(disk.FullDiskError) as caught, disk.Writing(path, 123_456):
        raise error
    assert re.fullmatch(
        rf"{path}: the disk is full, or .*: expected room for 123,456 bytes, got [\d,]+ free; make "
        "room and run the same command again",
        str(caught.value),
    )


def test_the_first_to_say_it_is_heard(tmp_path):
    outer, inner = (disk.Writing(tmp_path / name) for name in ("outer", "inner"))
    with pytest.raises(disk.FullDiskError, match="inner"), outer, inner:
        raise ERRORS[0]


def test_an_error_that_comes_from_a_full_disk_is_one(tmp_path):
    with pytest.raises(disk.FullDiskError), disk.Writing(tmp_path):
        try:
            raise ERRORS[0]
        except OSError as error:
            raise ValueError("could not save") from error


@pytest.mark.parametrize("error", [ValueError("row 7"), OSError(errno.EACCES, "x"), KeyError(1)])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, disk.Writing(tmp_path):
        raise error
    assert caught.value is error


def test_room_is_taken(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        disk.allocate(file.fileno(), 1000)
        disk.allocate(file.fileno(), 0)
    assert (tmp_path / "x").stat().st_size == 1000
