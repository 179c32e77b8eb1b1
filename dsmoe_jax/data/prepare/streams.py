"""Bytes of raw text files as UTF-8 with plain line ends: archives, encodings, carriage returns.

Owns what stands between a file and its rows. An archive is told by its first bytes and not by its
name. Does not own rows or quotes (`records.py`).
"""

import bz2
import codecs
import contextlib
import io
import lzma
import pathlib
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import zstandard

from dsmoe_jax import terminal
from dsmoe_jax.data.prepare import records

PARQUET = b"PAR1"
_GZIP_BITS = 31
_FIRST_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PLAIN_ENCODINGS = ("utf-8", "ascii")


class _Decompressor(Protocol):
    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, /) -> bytes: ...


class _Archive(NamedTuple):
    """One kind of compressed stream: its first bytes, its reader and what damage raises."""

    name: str
    magic: bytes
    make: Callable[[], Any]
    failures: tuple[type[Exception], ...]


_ARCHIVES = (
    _Archive("gzip", b"\x1f\x8b", lambda: zlib.decompressobj(_GZIP_BITS), (zlib.error, EOFError)),
    _Archive(
        "zstd",
        b"\x28\xb5\x2f\xfd",
        lambda: zstandard.ZstdDecompressor().decompressobj(),
        (zstandard.ZstdError, EOFError),
    ),
    _Archive("bzip2", b"BZh", bz2.BZ2Decompressor, (OSError, EOFError)),
    _Archive("xz", b"\xfd7zXZ\x00", lzma.LZMADecompressor, (lzma.LZMAError, EOFError)),
)
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
# Files that are no text although their bytes could be read: where their mark is, and what to do.
_UNPACK, _EXPORT = "unpack it", "export it as CSV or Parquet"
_OTHERS = (
    *((0, archive.magic, f"a {archive.name}", _UNPACK) for archive in _ARCHIVES),
    (0, _ZIP, "a zip", _UNPACK),
    (257, b"ustar", "a tar", _UNPACK),
    (0, PARQUET, "a Parquet", _UNPACK),
    (0, b"\xd0\xcf\x11\xe0", "an Excel", _EXPORT),
    (0, b"SQLite format 3", "an SQLite", _EXPORT),
    (0, b"ARROW1", "an Arrow", _EXPORT),
)
# What a name promises, for the message on a file that is something else.
_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip"}


class Text:
    """Reads a file's text; `position` is that in the file, of `size` bytes.

    Attributes:
      promised: The kind of archive that the name promises and the content is not; "" where none.
    """

    def __init__(
        self, path: pathlib.Path, raw: io.BufferedReader, source: Callable[[int], bytes], kind: str
    ):
        self.promised = "" if kind else _SUFFIXES.get(path.suffix, "")
        self._path, self._raw, self._source, self._kind = path, raw, source, kind
        self._ready = b""
        self._encoding = ""
        self._decode: Any = None
        self._returns = False

    def start(self, encoding: str) -> None:
        """Looks at the first bytes for the encoding and the line ends."""
        first = self._source(_FIRST_BYTES)
        self._check_kind(first)
        self._encoding = name = codecs.lookup(encoding).name
        if name == "utf-8" and first.startswith(_UTF_16):
            self._encoding = name = "utf-16"
        if name not in _PLAIN_ENCODINGS:
            self._decode = codecs.getincrementaldecoder(name)()
            first = self._recode(first, end=not first)
        if b"\0" in first:
            raise ValueError(
                f"{self._path}: expected text, got zero bytes; set data.encoding, such as "
                "'utf-16-le', or check that this is the right file"
            )
        first = first.removeprefix(codecs.BOM_UTF8)
        end = records.first_end(first, b"\n\r")
        # A text of carriage returns alone is that of old Macs and of some spreadsheets.
        self._returns = first[end : end + 1] == b"\r" and first[end + 1 : end + 2] != b"\n"
        self._ready = self._plain(first)

    def _check_kind(self, first: bytes) -> None:
        """Refuses another kind of file, also inside an archive."""
        for place, mark, name, todo in _OTHERS:
            # A text may begin with letters that are a mark, and has no zeros.
            if first[place:].startswith(mark) and b"\0" in first:
                inside = f" inside a {self._kind} file" if self._kind else ""
                raise ValueError(f"{self._path}: expected text, got {name} file{inside}; {todo}")

    @property
    def position(self) -> int:
        """Bytes of the file that were read."""
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        """Some of the text, about `size` bytes; nothing at its end.

        Raises:
          ValueError: On a damaged archive, or bytes that are not of the encoding.
        """
        while not self._ready:
            more = self._source(size)
            self._ready = self._plain(self._recode(more, end=not more) if self._decode else more)
            if not more:
                break
        text, self._ready = self._ready[:size], self._ready[size:]
        return text

    def _recode(self, data: bytes, *, end: bool) -> bytes:
        try:
            text: str = self._decode.decode(data, end)
        except UnicodeError as failure:
            raise ValueError(
                f"{self._path}: expected text in the encoding {self._encoding}, got other bytes "
                f"({failure}); set data.encoding"
            ) from None
        return text.encode("utf-8", errors="replace")

    def _plain(self, text: bytes) -> bytes:
        return text.replace(b"\r", b"\n") if self._returns else text


@contextlib.contextmanager
def open_text(path: pathlib.Path, encoding: str = "utf-8") -> Iterator[Text]:
    """The text of a file, whatever archive it is in.

    Raises:
      ValueError: In one line, on an archive that is damaged or holds several files.
    """
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        first = raw.read(8)
        raw.seek(0)
        kind = next((a for a in _ARCHIVES if first.startswith(a.magic)), None)
        if first.startswith((_ZIP, _EMPTY_ZIP)):
            source = _zip_reader(path, raw, stack)
            name = "zip"
        elif kind:
            source, name = _reader(path, raw, kind), kind.name
        else:
            source, name = raw.read, ""
        text = Text(path, raw, source, name)
        text.start(encoding)
        yield text


def check_file(path: pathlib.Path) -> None:
    """Refuses what is no plain file before anything waits for it.

    Raises:
      ValueError: Saying what is there instead: nothing, a folder, a named pipe.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        found = "a symbolic link to nothing" if path.is_symlink() else "none"
        raise ValueError(
            f"{path}: expected a file, found {found}; check the folder and the name"
        ) from None
    except OSError as failure:
        raise ValueError(f"{path}: expected a file, got {failure.strerror}") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        found = kinds.get(stat.S_IFMT(mode), "a device")
        raise ValueError(f"{path}: expected a file, got {found}; write its content to a file")


def is_parquet(path: pathlib.Path) -> bool:
    """Whether a file is one of Parquet, or by its name should be."""
    if path.suffix == ".parquet":
        return True
    with path.open("rb") as raw:
        return raw.read(len(PARQUET)) == PARQUET


def _reader(path: pathlib.Path, raw: io.BufferedReader, kind: _Archive) -> Callable[[int], bytes]:
    """Reads a compressed stream of one or several members, of which none may end early."""
    made: list[_Decompressor] = [kind.make()]
    left = [b""]

    def read(size: int) -> bytes:
        parts: list[bytes] = []
        found = 0
        while found < size:
            data = left[0] or raw.read(min(_PIECE_BYTES, max(size, 1)))
            left[0] = b""
            if made[0].eof:
                # Archives may be concatenated, and tapes pad them with zeros.
                data = data.lstrip(b"\0")
                if data:
                    made[0] = kind.make()
            if not data:
                if not made[0].eof and not raw.peek(1):
                    raise _damaged(path, kind.name, "one that ends early")
                if not raw.peek(1):
                    break
                continue
            try:
                text = made[0].decompress(data)
            except kind.failures as failure:
                raise _damaged(path, kind.name, f"damaged content ({failure})") from None
            if made[0].eof:
                left[0] = made[0].unused_data
            parts.append(text)
            found += len(text)
        return b"".join(parts)

    return read


def _zip_reader(
    path: pathlib.Path, raw: io.BufferedReader, stack: contextlib.ExitStack
) -> Callable[[int], bytes]:
    """Reads the one file of a zip archive."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(raw))
        # macOS adds notes of its own.
        names = [
            entry.filename
            for entry in archive.infolist()
            if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")
        ]
        if not names:
            return lambda size: b""
        if len(names) != 1:
            raise ValueError(
                f"{path}: expected a zip file with one file in it, got "
                f"{terminal.one_line(', '.join(names[:5]))}{'...' if len(names) > 5 else ''}; "
                "unpack it and name the files"
            )
        member = stack.enter_context(archive.open(names[0]))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as failure:
        raise _damaged(path, "zip", f"damaged content ({failure})") from None

    def read(size: int) -> bytes:
        try:
            return member.read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError) as failure:
            raise _damaged(path, "zip", f"damaged content ({failure})") from None

    return read


def _damaged(path: pathlib.Path, kind: str, found: str) -> ValueError:
    return ValueError(
        f"{path}: expected a whole {kind} file, got {found}; copy or download it again"
    )
