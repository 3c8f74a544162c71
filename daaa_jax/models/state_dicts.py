"""Finds a network's tensors in what a training program saved: in which dict, after which prefix."""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Parts of keys and prefixes of averaged copies of a network, and of gradients.
_AVERAGED = re.compile("(ema|teacher|momentum|swa|average|avg|shadow|polyak|k|grad|velocity)(d|s)?")


@dataclasses.dataclass
class Part:
    """Tensors in one dict of a file whose names begin alike.

    Attributes:
      keys: where the dict is in the file, such as `checkpoint.model`; empty if it is the file.
      prefix: how the names begin, such as `module.`.
      fits: for each tensor whose name, after the prefix, is the network's, whether its shape is.
      tensors: those of the network, and any others after the same prefix, by the rest of the name.
      others: the dict's tensors that belong to no part that fits.
      added: names of tensors that `add_apart` added.
    """

    keys: str
    prefix: str
    fits: list[bool] = dataclasses.field(default_factory=list)
    tensors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    others: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    added: list[str] = dataclasses.field(default_factory=list)

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        prefix = f"prefix {self.prefix}" if self.prefix else ""
        return ", ".join(filter(None, (self.keys, prefix))) or "names without a prefix"

    def rank(self) -> tuple[int, int, bool]:
        """Higher if it fits better; of two that fit alike, if it is not called a copy."""
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", f"{self.keys} {self.prefix}")
        is_copy = any(_AVERAGED.fullmatch(word.lower()) for word in words)
        return sum(self.fits), len(self.fits), not is_copy


def find(
    content: Any, fits: Callable[[str, np.ndarray], bool | None], wanted: int
) -> tuple[Part, list[Part]]:
    """Finds the tensors that fit a network best.

    Among several parts that fit equally, such as a network and its moving average, it is the first
    in the file that is not called an average, outer dicts before inner ones.

    Args:
      content: what was saved: arrays in dicts and lists, nested anyhow, beside anything else.
      fits: whether a tensor of some name has the shape of the network's; None if the network has no
        tensor of that name.
      wanted: number of the network's tensors; a prefix is before a quarter of them at least.

    Returns:
      The part, and others that fit equally; its `tensors` are empty if there are none at all.
    """
    dicts = _dicts(content)
    parts = [part for keys, tensors in dicts.items() for part in _parts(keys, tensors, fits)]
    parts = [part for part in parts if not part.prefix or 4 * len(part.fits) >= wanted]
    # The first of equal ones.
    best = max(parts, key=Part.rank, default=Part("", ""))
    equal = [p for p in parts if p is not best and sum(p.fits) == sum(best.fits) > 0]
    copies = tuple(p.prefix for p in equal if p.keys == best.keys)
    inner = tuple(prefix for prefix in copies if len(prefix) > len(best.prefix))
    for name, value in dicts.get(best.keys, {}).items():
        if name.startswith(best.prefix) and not name.startswith(inner):
            best.tensors[name.removeprefix(best.prefix)] = value
        elif not name.startswith(copies):
            best.others[name] = value
    return best, equal


def add_apart(part: Part, is_apart: Callable[[str, np.ndarray], bool]) -> None:
    """Adds tensors that a part lacks and that are after another prefix, such as a classifier's.

    Args:
      part: as found; changed in place.
      is_apart: whether a tensor of some name may be added; it is if it is the only one.
    """
    found = collections.defaultdict(list)
    for name, value in part.others.items():
        for end in _ends_of_prefixes(name):
            if name[end:] not in part.tensors and is_apart(name[end:], value):
                found[name[end:]].append(name)
    for rest, names in found.items():
        if len(names) == 1:
            part.tensors[rest] = part.others.pop(names[0])
            part.added += names


def _dicts(content: Any) -> dict[str, dict[str, np.ndarray]]:
    """All dicts that contain tensors, with their tensors, by their keys; the outer ones first."""
    found, seen, queue = {}, set(), [("", content)]
    for keys, value in queue:  # which grows
        is_nested = isinstance(value, (Mapping, list, tuple))
        if not is_nested or id(value) in seen:  # lists may contain each other many times
            continue
        seen.add(id(value))
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        if tensors := {str(key): item for key, item in items if isinstance(item, np.ndarray)}:
            found[keys] = tensors
        queue += [(f"{keys}.{key}" if keys else str(key), item) for key, item in items]
    return found


def _parts(
    keys: str, tensors: Mapping[str, np.ndarray], fits: Callable[[str, np.ndarray], bool | None]
) -> list[Part]:
    """All tensors, and a part for each prefix after which the network has the rest of a name."""
    parts = {"": Part(keys, "")}
    for name, value in tensors.items():
        for end in _ends_of_prefixes(name):
            if (is_fitting := fits(name[end:], value)) is not None:
                parts.setdefault(name[:end], Part(keys, name[:end])).fits.append(is_fitting)
    return list(parts.values())


def _ends_of_prefixes(name: str) -> list[int]:
    """Where the rest of a name may begin."""
    return [0, *(separator.end() for separator in re.finditer("[./]", name))]
