"""Fits the tensors of a file of weights to a network, by their names."""

import collections
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from daaa_jax.errors import UserError, listed
from daaa_jax.models import state_dicts

_NOT_FLOAT = "biucOSUMm"  # kinds of NumPy types: integers, complex numbers, objects, texts, times
# What PyTorch puts before the names within a module that is compiled or distributed alone.
_INNER = re.compile(r"(?<=\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Of tensors named like `conv_stem.weight`.
_TIMM = (
    "these have timm's names: those of its tf_efficientnet_lite0 suit, those of efficientnet_lite0 "
    "expect another normalisation and padding"
)
# Collection and name of a parameter, by the last part of our name in the tables of names.
_PARAMETERS = {
    "kernel": ("params", "kernel"),
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def fit(
    content: Any,
    names: Sequence[tuple[str, str]],
    variables: Mapping[str, Mapping],
    origin: Path,
    whole: bool = False,
) -> dict[str, dict]:
    """Replaces a network's variables by tensors; logs where they were if not in a plain dict.

    Args:
      content: tensors by the file's names, with kernels `[out, in, height, width]` and matrices
        `[out, in]` as in PyTorch; or by our names, such as `params/norm1/scale`, and in our layout.
        They may be part of nested dicts and have a prefix before each name, see `state_dicts.find`.
      names: pairs of a regular expression that matches a tensor's name in the file, and our name as
        a replacement; the last part of a norm's name stays that of the file.
      variables: `params` and `batch_stats`.
      origin: the file, for messages.
      whole: whether to replace the classifier layer's weights too.

    Returns:
      A tree like `variables`, float32.

    Raises:
      UserError: lists every tensor that is missing, unexpected, of another shape, or not finite.
    """
    network = _Network(names, traverse_util.flatten_dict(variables, sep="/"), whole)
    part, equal = state_dicts.find(content, network.fits, len(network.wanted))
    if not part.tensors:
        raise UserError(f"{origin} contains no tensors by name")
    state_dicts.add_apart(part, network.is_classifier)
    found, problems = network.assign(part.tensors)
    unused = [f"not used: {listed([*part.others], 3)}"] if part.others else []
    if problems:
        inside = f", {listed([part.place])}," if part.keys or part.prefix else ""
        lists = [f"{kind}: {listed(items)}" for kind, items in problems.items()] + unused
        raise UserError(f"{origin}{inside} does not fit the network; {'; '.join(lists)}")
    if remarks := _remarks(part, equal) + unused:
        _print_once(f"{origin}: {'; '.join(remarks)}", flush=True)
    return traverse_util.unflatten_dict(network.variables | found, sep="/")


def _remarks(part: state_dicts.Part, equal: Sequence[state_dicts.Part]) -> list[str]:
    """What to log about a file's tensors: where they were, copies, and what else to know."""
    remarks = []
    if part.keys or part.prefix:
        apart = f", and {listed(part.added)}" if part.added else ""
        remarks.append(f"weights read from {listed([part.place])}{apart}")
    if equal:
        places = listed([f"({other.place})" for other in equal], 3)
        remarks.append(f"the same network is also in {places}, save that alone to use it")
    return [*remarks, _TIMM] if "conv_stem.weight" in part.tensors else remarks


_print_once = functools.cache(print)  # weights are read several times in a run


class _Network:
    """The variables of a network, and the names of its tensors in files.

    Attributes:
      variables: all variables, by name.
      wanted: names of those to replace.
    """

    def __init__(self, names: Sequence[tuple[str, str]], variables: dict, whole: bool):
        self._names, self.variables = names, variables
        self.wanted = {n for n in variables if whole or n.split("/")[1] != "classifier"}
        self.place = functools.cache(self._place)

    def _place(self, name: str) -> str:
        """Our name of a tensor, such as `batch_stats/norm1/mean`; no variable's if unknown."""
        if name in self.variables:
            return name
        name = _INNER.sub("", name)
        for pattern, replacement in self._names:
            if match := re.fullmatch(pattern, name):
                layer, _, last = match.expand(replacement).rpartition("/")
                collection, last = _PARAMETERS.get(last, ("", ""))
                return f"{collection}/{layer}/{last}"
        return ""

    def fits(self, name: str, value: np.ndarray) -> bool | None:
        """Whether a tensor has the shape wanted; None if its name is not that of a wanted one."""
        if (place := self.place(name)) not in self.wanted:
            return None
        return self._ours(name, value).shape == tuple(self.variables[place].shape)

    def is_classifier(self, name: str, value: np.ndarray) -> bool:
        """Whether a tensor fits the classifier layer, if that is wanted."""
        return bool(self.fits(name, value)) and self.place(name).split("/")[1] == "classifier"

    def assign(
        self, tensors: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
        """Variables by name, and the names of tensors with a problem, by problem."""
        found, problems = {}, collections.defaultdict(list)
        for name, value in tensors.items():
            place = self.place(name)
            if place not in self.wanted:
                if place not in self.variables and not name.endswith("num_batches_tracked"):
                    problems["unexpected"].append(name)
                continue
            found[place] = value = self._ours(name, value)
            if not self.fits(name, tensors[name]):
                wanted = tuple(self.variables[place].shape)
                problems["of another shape"].append(f"{name} {value.shape}, wanted {wanted}")
            elif value.dtype.kind in _NOT_FLOAT:
                problems["not floats"].append(name)
            else:
                found[place] = value.astype(np.float32)
                if not np.isfinite(found[place]).all():
                    problems["not finite"].append(name)
        if missing := sorted(self.wanted - found.keys()):
            problems["missing"] = missing
        return found, problems

    def _ours(self, name: str, value: np.ndarray) -> np.ndarray:
        """A tensor in our layout, if its name is PyTorch's."""
        if name in self.variables:
            return value
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
