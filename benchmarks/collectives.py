"""Communication between devices in a step, read from its compiled program."""

import collections
import math
import re
from collections.abc import Mapping

_OPERATION = re.compile(
    r"= (?P<shapes>\([^=]*?\)|\S+) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"
    r"(?P<start>-start)?\("
)
_COMMENT = re.compile(r"/\*.*?\*/")  # such as /*index=5*/ in a long tuple
_SHAPE = re.compile(r"(?P<type>[a-z]+\d*)\[(?P<sides>[\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}


def bytes_by_kind(program: str) -> Mapping[str, int]:
    """Bytes of the results of a program's collective operations, per device, without scalars.

    Args:
      program: optimised HLO of one device, `jax.stages.Compiled.as_text()`.

    Returns:
      Bytes by kind, such as `all-reduce`. Over d devices, an all-reduce of n bytes sends
      2 n (d-1)/d from each, which hardly grows with d; an all-gather with a result of n bytes
      sends n (d-1)/d.
    """
    found: dict[str, int] = collections.Counter()
    for match in _OPERATION.finditer(_COMMENT.sub("", program)):
        sizes = [_bytes(shape) for shape in _SHAPE.finditer(match["shapes"]) if shape["sides"]]
        if match["start"] and match["kind"] != "all-reduce":
            # Asynchronous operations list their operands, then their results.
            sizes = sizes[len(sizes) // 2 :]
        found[match["kind"]] += sum(sizes)
    return dict(found)


def _bytes(shape: re.Match) -> int:
    sides = map(int, shape["sides"].split(","))
    return math.prod(sides) * _BYTES.get(shape["type"], 4)
