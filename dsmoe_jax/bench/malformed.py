"""Malformed inputs of own logs, by kind and from a seed, each beside a sound log of a few rows.

Owns what is wrong with them, and what the preparation of one ends with.
"""

import contextlib
import csv
import io
import pathlib
import random
from collections.abc import Callable, Iterator

from dsmoe_jax import console
from dsmoe_jax.data.prepare import custom

_NAMES = ("user", "item", "time", "rating")
_START_S, _DAY_S = 1_714_521_600, 86_400
_EACH = 4
# What a cell of a column may hold that is none of its values.
_CELLS = (
    "", "nan", "inf", "-inf", "1e999", "9" * 400, "-1", "0x1F", "1,5", "\uff11\uff12", "⁵",
    "2567-05-01", "1445-10-22", "令和6年", "12/31/2024 11:59 PM", "2024-02-30", "24:00",
    "0000-00-00", "NULL", "=1+1", "\x00", "\u200b", "\ufeff1", "💣", "\ud7ff", "'", '"',
    "a" * 70_000,
)  # fmt: skip


def _write(rows: list[list[str]], separator: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows([list(_NAMES), *rows])
    return text.getvalue().encode()


def _rows() -> list[list[str]]:
    """Eight users and days, so that all splits have queries."""
    return [
        [f"u{user}", f"i{(user + 3 * day) % 30}", str(_START_S + day * _DAY_S + user), "5"]
        for day in range(8)
        for user in range(8)
    ]


def _cell(rng: random.Random) -> bytes:
    rows = _rows()
    rng.choice(rows)[rng.randrange(4)] = rng.choice(_CELLS)
    return _write(rows)


def _cut(rng: random.Random) -> bytes:
    text = _write(_rows())
    return text[: rng.randrange(len(text))]


def _bytes(rng: random.Random, wrong: bytes) -> bytes:
    text = _write(_rows())
    place = rng.randrange(len(text))
    return text[:place] + wrong + text[place + len(wrong) :]


def _header(rng: random.Random) -> bytes:
    header, _, rest = _write(_rows()).partition(b"\n")
    names = header.split(b",")
    place = rng.randrange(4)
    changed = rng.choice([
        [*names[:place], *names[place + 1 :]],
        [*names, names[place]],
        [*names[:place], b"", *names[place + 1 :]],
        [*names[:place], names[place].upper(), *names[place + 1 :]],
        [],
    ])  # fmt: skip
    return b",".join(changed) + b"\n" + rest


def _ragged(rng: random.Random) -> bytes:
    lines = _write(_rows()).split(b"\n")
    place = rng.randrange(1, len(lines) - 1)
    lines[place] = rng.choice([lines[place] + b",x", lines[place][:4], b"", b",,,", b"\t"])
    return b"\n".join(lines)


# The bytes of a log's file, by what is wrong with them.
KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "cut": _cut,
    "cell": _cell,
    "second cell": _cell,
    "third cell": _cell,
    "fourth cell": _cell,
    "header": _header,
    "second header": _header,
    "ragged": _ragged,
    "NULs": lambda rng: _bytes(rng, bytes(rng.randrange(1, 40))),
    "quote": lambda rng: _bytes(rng, b'"'),
    "quotes": lambda rng: _bytes(rng, b'""",\n"'),
    "Latin-1": lambda rng: _bytes(rng, "äöü".encode("latin-1")),
    "UTF-16 inside": lambda rng: _bytes(rng, "u1,i1".encode("utf-16")),
    "surrogates": lambda rng: _bytes(rng, b"\xed\xa0\x80"),
    "noise": lambda rng: rng.randbytes(rng.randrange(1, 2000)),
    "magic": lambda rng: (
        rng.choice([b"PK\x03\x04", b"\x1f\x8b", b"PAR1", b"BZh9", b"\x28\xb5\x2f\xfd"])
        + _write(_rows())
    ),
    "mixed separators": lambda rng: _bytes(rng, rng.choice([b";", b"\t", b"|"])),
    "returns": lambda rng: _bytes(rng, b"\r"),
    "byte order marks": lambda rng: _bytes(rng, b"\xef\xbb\xbf"),
    "empty": lambda rng: rng.choice([b"", b"\n", b"\n\n\n", b",,,\n", b"\xef\xbb\xbf", b" "]),
    "no rows": lambda rng: ",".join(_NAMES).encode() + rng.choice([b"", b"\n", b"\r\n", b"\n\n"]),
}


def generate(folder: pathlib.Path, rng: random.Random) -> Iterator[tuple[str, custom.CustomConfig]]:
    """What is wrong, and the configuration of each input, whose file is below a folder."""
    for number in range(_EACH):
        for kind, make in KINDS.items():
            raw = folder / f"{kind} {number}".replace(" ", "_")
            raw.mkdir(parents=True)
            (raw / "log.csv").write_bytes(make(rng))
            section = custom.CustomConfig(
                raw_dir=str(raw), user_id="user", item_id="item", scenario="",
                positive="rating >= 4", validation_days=1, test_days=1,
            )  # fmt: skip
            yield f"{kind} {number}", section


def judge(section: custom.CustomConfig) -> str:
    """`equal` where a log is prepared, `refused` where one line says why not, else what it did."""
    errors, store = io.StringIO(), pathlib.Path(section.raw_dir, "store")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = console.exit_status(lambda: section.prepare(str(store)))
    said, beside = errors.getvalue().splitlines(), len(list(store.parent.iterdir()))
    if status == 0 and store.is_dir() and not said:
        return "equal"
    is_refusal = status == 2 and len(said) == 1 and beside == 1
    return "refused" if is_refusal else f"status {status}, {beside} files, said {said[:3]}"
