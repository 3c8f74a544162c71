"""Reads files of weights: PyTorch, safetensors and NumPy, told apart by their content."""

import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from daaa_jax.errors import UserError, first_line, listed
from daaa_jax.models import torch_file
from daaa_jax.runtime import file_kind

_EXPECTED = "a PyTorch state dict, .safetensors or .npz file"
# The first bytes of the kinds that are read; those of safetensors may begin like a pickle's.
_READ = {
    rb".{4}\0{4}\{": "safetensors",
    rb"\x80[\x02-\x05]": "torch",
    rb"PK(\x03\x04|\x05\x06)": "zip",
}
_TENSORFLOW = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of a checkpoint
_STATE_DICT = "save its state_dict() by torch.save"
# Names in other kinds of zip archives, without the top folder, and what they are.
_ARCHIVES = {
    r"code/.*|constants\.pkl|model\.json": f"a TorchScript program, {_STATE_DICT}",
    r"archive_format|serialized_exported_program\.json": f"a torch.export program, {_STATE_DICT}",
    r"\.data/extern_modules": f"a torch.package archive, {_STATE_DICT}",
    r"(.*/)?[^/]*\.h5": "a Keras archive",
}
# Number types of safetensors; the narrower ones have no NumPy type.
_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def user_path(place: str, what: str) -> Path:
    """A path from settings, its `~` expanded.

    Raises:
      UserError: if the user after `~` is unknown.
    """
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise UserError(f"{what}={place}: {first_line(error)}") from error


def read(path: Path, what: str = "model.weights") -> Any:
    """Reads what a file of weights contains, whatever its suffix.

    Args:
      path: a PyTorch, `.safetensors` or `.npz` file.
      what: the setting that names the file, for error messages.

    Returns:
      A dict of arrays by name; of a PyTorch file whatever was saved, see `torch_file.read`.

    Raises:
      UserError: if the file is missing, damaged or of another kind.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        "torch": torch_file.read,
        "safetensors": _read_safetensors,
        "npz": _read_npz,
    }
    found = kind(path, what)
    try:
        return readers[found](path)
    except UserError as error:  # it begins with the path
        raise UserError(f"{what}={error}") from error
    except _Unsupported as error:
        raise UserError(f"{what}={path}: {error}") from error
    except Exception as error:  # a damaged file raises errors of many classes
        raise UserError(
            f"{what}={path} cannot be read as {found} file: {first_line(error)}"
        ) from error


def kind(path: Path, what: str = "the file") -> str:
    """Kind of a file of weights by its first bytes: `torch`, `safetensors` or `npz`.

    Raises:
      UserError: if it is missing, cannot be read or is of another kind; says of which.
    """
    if os.path.isdir(path):
        raise UserError(f"{what}={path} is a folder; expected {_EXPECTED}")
    try:
        with path.open("rb") as file:
            head = file.read(file_kind.HEAD)
            file.seek(-min(len(head), len(_TENSORFLOW)), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{what}={path} cannot be read: {reason}") from error
    found = _match(_READ, head)
    if found == "zip":
        found = _zip_kind(path)
    if found in ("torch", "safetensors", "npz"):
        return found
    if tail == _TENSORFLOW:
        found = "a TensorFlow checkpoint"
    found = found or file_kind.describe(head) or "of an unknown kind"
    if found == "a tar archive" and _is_torch_tar(path):
        found = "in PyTorch's first format (tar), load it in PyTorch and save its state_dict()"
    raise UserError(f"{what}={path} is {found}; expected {_EXPECTED}")


def _match(patterns: dict[bytes, str], head: bytes) -> str:
    found = (name for pattern, name in patterns.items() if re.match(pattern, head, re.DOTALL))
    return next(found, "")


def _zip_kind(path: Path) -> str:
    """`npz`, `torch`, or what the zip archive is instead."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged archive raises errors of many classes
        return "a zip archive that is cut short, copy or download it again"
    if not names or any(name.endswith(".npy") for name in names):
        return "npz"
    inner = [name.partition("/")[2] for name in names]
    for pattern, found in _ARCHIVES.items():
        if any(re.fullmatch(pattern, name) for name in (*inner, *names)):
            return found
    return "torch" if "data.pkl" in inner else f"a zip archive of {listed(names, 3)}"


def _is_torch_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:") as archive:
            return {"storages", "tensors", "pickle"} <= set(archive.getnames())
    except (tarfile.TarError, OSError, EOFError):
        return False


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: _array(arrays, name) for name in arrays.files}


def _array(arrays: Mapping[str, Any], name: str) -> Any:
    """An array with bfloat16 restored, which NumPy saves as bytes without a type."""
    try:
        value = arrays[name]
    except ValueError as error:
        raise ValueError(f"{name}: {first_line(error)}") from error
    if not isinstance(value, np.ndarray) or value.dtype.type is not np.void:
        return value
    if value.dtype.fields or value.dtype.itemsize != 2:
        raise _Unsupported(name, value.dtype)
    return value.view(ml_dtypes.bfloat16)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    # Sorted, as their order changes between runs.
    tensors = sorted(safetensors.deserialize(path.read_bytes()), key=lambda item: item[0])
    for name, tensor in tensors:
        if tensor["dtype"] not in _TYPES:
            raise _Unsupported(name, tensor["dtype"])
    return {
        name: np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in tensors
    }


class _Unsupported(Exception):
    """A tensor of a type that cannot be read."""

    def __init__(self, name: str, dtype: object):
        super().__init__(f"{name} is of type {dtype}, convert it to float32")
