"""Records of a separated text: where a row ends, which separators count, what quotes mean.

Owns quoting, as Python's `csv` and spreadsheets have it: a quote opens a field only at its start,
two of them inside stand for one, and a quote elsewhere is text, such as an inch mark. Everything
works on whole blocks; single characters are looked at in blocks with unusual quotes alone.
"""

import re
from typing import NamedTuple

import numpy as np

from dsmoe_jax import terminal

# Longer rows are taken for a quote that nothing closes.
LONGEST_RECORD = 1 << 26
# Comparisons stay in the cache.
_COUNTED_AT_ONCE = 1 << 18
_QUOTE, _LINE_END, _RETURN = b'"\n\r'


class QuoteError(ValueError):
    """Quotes that belong to two fields.

    Attributes:
      rows: Whole records before the first of them.
    """

    def __init__(self, rows: int, after: bytes):
        """Of the text after the closing quote."""
        self.rows = rows
        super().__init__(f"expected a separator after the closing quote, got {shorten(after)}")


class Block(NamedTuple):
    """Whole records, and what is left of the text.

    Attributes:
      text: Records whose quotes are regular: they enclose whole fields.
      rest: What follows the last of them.
      rows: Number of the records.
      separators: Number of separators between cells.
      is_open: Whether the rest begins a field that no quote closes so far.
    """

    text: bytes
    rest: bytes
    rows: int
    separators: int
    is_open: bool = False


def cut(rest: bytes, text: bytes, separator: bytes, *, end: bool) -> Block:
    """Whole records of `rest + text`; empty lines wait for what follows.

    At the end the last record needs no line end, and empty lines are dropped. Blocks are large, so
    without quotes each byte is copied once.

    Raises:
      QuoteError: When a field in quotes goes on after the quote that closes it, and over lines: its
        quotes then belong to two fields.
    """
    if b'"' in text or b'"' in rest:
        return _cut_quoted(rest + text, separator, end=end)
    if end:
        return _measured((rest + text).rstrip(b"\r\n"), b"", separator)
    last = _stop(text)
    if last is None:
        # A short block without the end of a line of its own may end one of the rest.
        whole = rest + text
        stop = _stop(whole) or 0
        return _measured(whole[:stop], whole[stop:], separator)
    return _measured(b"".join((rest, memoryview(text)[:last])), text[last:], separator)


def _measured(text: bytes, rest: bytes, separator: bytes) -> Block:
    """A block without quotes."""
    rows = count(text, b"\n") + (not text.endswith(b"\n"))
    return Block(text, rest, rows, count(text, separator))


def _stop(text: bytes) -> int | None:
    """Where the last line ends that is followed by another or not empty; None without one."""
    last = text.rfind(b"\n") + 1
    while last and text[last - 1] in b"\r\n":
        last -= 1
    return text.find(b"\n", last) + 1 if last else None


def _cut_quoted(whole: bytes, separator: bytes, *, end: bool) -> Block:
    if end:
        whole = whole.rstrip(b"\r\n")
    last = len(whole) if end else whole.rfind(b"\n") + 1
    lines, tail = whole[:last], whole[last:]
    found = _scan(lines, separator)
    if not found.is_regular and not _is_regular(lines, separator):
        lines = _regularise(lines, separator)
        found = _scan(lines, separator)
    stop = len(lines)
    if found.is_open:
        stop = _stop(lines[: found.last + 1]) or 0
    elif not end:
        stop = _stop(lines) or 0
    left = _scan(lines[stop:], separator)
    text, rows = lines[:stop], found.rows - left.rows
    rows += bool(text) and not text.endswith(b"\n")
    separators = found.separators - left.separators
    return Block(text, lines[stop:] + tail, rows, separators, found.is_open)


class _Scan(NamedTuple):
    """What one pass over a text finds, if its quotes are regular.

    Attributes:
      is_regular: Whether they are and none is doubled.
      is_open: Whether the text ends inside quotes.
      rows, separators: Line ends and separators outside quotes.
      last: Where the last of these line ends is; -1 without.
    """

    is_regular: bool
    is_open: bool
    rows: int
    separators: int
    last: int


def _scan(text: bytes, separator: bytes) -> _Scan:
    """Looks at a text in parts that stay in the cache."""
    whole = np.frombuffer(text, np.uint8)
    is_open, after_end, unended = False, True, False
    odd = rows = separators = 0
    last = -1
    for start in range(0, len(whole), _COUNTED_AT_ONCE):
        byte = whole[start : start + _COUNTED_AT_ONCE]
        quote = byte == _QUOTE
        inside = np.bitwise_xor.accumulate(quote)
        if is_open:
            np.logical_not(inside, out=inside)
        is_separator, is_end = byte == separator[0], byte == _LINE_END
        begins = is_separator | is_end
        ends = begins | (byte == _RETURN)
        opens, closes = quote & inside, quote > inside
        # An opening quote after neither, or a closing one before neither.
        odd += int(np.count_nonzero(opens[1:] > begins[:-1])) + bool(opens[0] and not after_end)
        odd += int(np.count_nonzero(closes[:-1] > ends[1:])) + bool(unended and not ends[0])
        after_end, unended, is_open = bool(begins[-1]), bool(closes[-1]), bool(inside[-1])
        is_end = is_end > inside
        rows += (found := int(np.count_nonzero(is_end)))
        separators += int(np.count_nonzero(is_separator > inside))
        if found:
            last = start + len(byte) - 1 - int(np.argmax(is_end[::-1]))
    return _Scan(not odd, is_open, rows, separators, last)


def _inside(byte: np.ndarray) -> np.ndarray:
    """Whether each byte of a regular text is inside quotes, an opening one included."""
    inside: np.ndarray = np.bitwise_xor.accumulate(byte == _QUOTE)
    return inside


def _is_regular(text: bytes, separator: bytes) -> bool:
    """Whether every quote opens a field at its start, closes one at its end or is doubled."""
    byte = np.frombuffer(text, np.uint8)
    place = np.flatnonzero(byte == _QUOTE)
    opening, closing = place[::2], place[1::2]
    may_be = np.zeros(256, bool)
    may_be[[separator[0], _LINE_END, _QUOTE]] = True
    if not may_be[byte[opening[opening > 0] - 1]].all():
        return False
    may_be[_RETURN] = True
    return bool(may_be[byte[closing[closing < len(byte) - 1] + 1]].all())


def _regularise(text: bytes, separator: bytes) -> bytes:
    """Quotes whole fields wherever there is a quote in one."""
    s = re.escape(separator)
    field = re.compile(
        rb"(?:\A|(?<=[\n" + s + rb']))(?:"([^"]*+(?:""[^"]*+)*+)"([^\n' + s + rb"]*+)"
        rb'|"[\s\S]*+\Z|([^"\n' + s + rb"][^\n" + s + rb"]*+))"
    )

    def quote(found: re.Match[bytes]) -> bytes:
        inside, after, plain = found.groups()
        if plain is not None:
            if b'"' not in plain:
                return found[0]
            inside, after = b"", plain
        if inside is None:
            return found[0]
        kept = after.rstrip(b"\r")
        if kept and b"\n" in inside:
            before = _regularise(text[: found.start()], separator)
            raise QuoteError(len(_row_ends(before)), kept)
        return b'"%b%b"%b' % (inside, kept.replace(b'"', b'""'), after[len(kept) :])

    return field.sub(quote, text)


def _row_ends(text: bytes) -> np.ndarray:
    byte = np.frombuffer(text, np.uint8)
    return np.flatnonzero((byte == _LINE_END) & ~_inside(byte))


def first_end(text: bytes, ends: bytes = b"\n") -> int:
    """Where the first of some characters outside quotes is; the text's length without one."""
    byte = np.frombuffer(text, np.uint8)
    found = np.flatnonzero(np.isin(byte, tuple(ends)) & ~_inside(byte))
    return int(found[0]) if len(found) else len(text)


def count(text: bytes, character: bytes) -> int:
    """Occurrences of one byte, several times faster than `bytes.count` where there are many."""
    byte = np.frombuffer(text, np.uint8)
    parts = (byte[i : i + _COUNTED_AT_ONCE] for i in range(0, len(byte), _COUNTED_AT_ONCE))
    return sum(int(np.count_nonzero(part == ord(character))) for part in parts)


def split_rows(text: bytes) -> list[bytes]:
    """The records of a block's text, one by one."""
    stops = _row_ends(text)
    starts = [0, *(stops + 1).tolist()]
    rows = [text[a:b] for a, b in zip(starts, [*stops.tolist(), len(text)], strict=True)]
    return rows[:-1] if text.endswith(b"\n") else rows


def split_cells(row: str, separator: str) -> list[str]:
    """The cells of a record with regular quotes."""
    cells, start, inside = [], 0, False
    row = row.removesuffix("\r")
    for found in re.finditer(f'["{re.escape(separator)}]', row):
        if found[0] == '"':
            inside = not inside
        elif not inside:
            cells.append(row[start : found.start()])
            start = found.end()
    cells.append(row[start:])
    return [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in cells]


def shorten(text: bytes) -> str:
    """A text as a message shows it, at most 80 characters."""
    return repr(terminal.shorten(text.decode("utf-8", errors="replace")))
