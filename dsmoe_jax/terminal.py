"""Text for a terminal: control characters of files are shown and not obeyed."""

import contextlib
from collections.abc import Iterator, Sequence

_LEFT = "\n\t"
_SHOWN_PARTS = 20
# C0, DEL and C1; and what reverses the direction of the text around it.
_CODES = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SHOWN = {code: f"\\x{code:02x}" for code in _CODES if chr(code) not in _LEFT}


def printable(text: str) -> str:
    """The text with control characters but line ends and tabs written as their codes."""
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """`printable`, and line ends and tabs are shown as well."""
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def shorten(text: str, most: int = 80) -> str:
    """The text, cut with dots where it is longer than a message should show."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def some(parts: Sequence[str]) -> str:
    """The first of some names as a message shows them, each shortened, and how many more."""
    more = len(parts) - _SHOWN_PARTS
    shown = ", ".join(shorten(part) for part in parts[:_SHOWN_PARTS])
    return f"{shown} and {more:,} more" if more > 0 else shown


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Line ends in the message of a ValueError, as those in names of columns, are shown."""
    try:
        yield
    except ValueError as error:
        if "\n" not in str(error):
            raise
        raise ValueError(one_line(str(error))) from error
