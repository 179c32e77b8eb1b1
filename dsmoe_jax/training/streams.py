"""Random streams: the number that a stage folds into a run's key."""

import zlib

# Stages of published records: their streams are the first four letters of their names, read as a
# little-endian number. Names that begin alike would share one, so other stages use a checksum.
_PUBLISHED = {"teacher": 0x63616574, "student": 0x64757473, "contrast": 0x746E6F63}


def of_stage(stage: str) -> int:
    """The number of a stage's random stream, which depends on nothing but its name."""
    return _PUBLISHED.get(stage, zlib.crc32(stage.encode()) & 0x7FFFFFFF)
