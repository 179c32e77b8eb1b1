"""Collectives of a compiled program, read from its optimised HLO text.

Owns the list of a program's collectives and the bytes that each costs a device.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_LINE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(OPS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction. Inside a loop it stands for one turn.

    Attributes:
      op: One of `OPS`.
      shapes: What it gives each device, such as `f32[64,16]`; several where XLA joined several.
      result_bytes: Bytes of those shapes.
      devices: How many take part: all of them, since meshes here have one axis.
    """

    op: str
    shapes: tuple[str, ...]
    result_bytes: int
    devices: int

    @property
    def moved_bytes(self) -> int:
        """Bytes that each device sends, by the algorithms that move the least: rings.

        With R the result's bytes and n devices: R (n - 1) / n to gather or exchange, twice that to
        reduce on all, R (n - 1) to reduce and scatter, R to permute.
        """
        n, others = self.devices, self.devices - 1
        shares = {"all-reduce": 2 * others, "reduce-scatter": n * others, "collective-permute": n}
        return self.result_bytes * shares.get(self.op, others) // n


def read(hlo: str, devices: int) -> list[Collective]:
    """The collectives of a program, `compiled.as_text()` for so many devices, in its order.

    Raises:
      ValueError: When a collective's shape cannot be read.
    """
    found = []
    for line in hlo.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        result, op, start = match.groups()
        shapes = [f"{kind}[{sizes}]" for kind, sizes in _SHAPE.findall(result)]
        if start and op in ("all-gather", "collective-permute"):
            # The result of their first half is the operands and then the results.
            shapes = shapes[len(shapes) // 2 :] if op == "all-gather" else shapes[1:2]
        if not shapes:
            raise ValueError(f"HLO: expected the shape of a {op}, got {line.strip()!r}")
        size = sum(map(_count_bytes, shapes))
        found.append(Collective(op, tuple(shapes), result_bytes=size, devices=devices))
    return found


def total_by_op(found: Iterable[Collective]) -> dict[str, int]:
    """Bytes that each device sends, by operation; operations that do not occur are left out."""
    total: dict[str, int] = {}
    for collective in found:
        total[collective.op] = total.get(collective.op, 0) + collective.moved_bytes
    return total


def _count_bytes(shape: str) -> int:
    kind, _, sizes = shape.rstrip("]").partition("[")
    bits = 8 if kind == "pred" else int(re.sub(r"^[a-z]+(\d+).*", r"\1", kind))
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
