"""Reads files of weights: PyTorch, safetensors and NumPy, told apart by their content."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from daaa_jax.errors import UserError, first_line, listed, readable
from daaa_jax.models import torch_file
from daaa_jax.runtime import file_kind

_EXPECTED = "a PyTorch state dict, .safetensors or .npz file"
_SAFETENSORS = re.compile(rb".{4}\0{4}\{", re.DOTALL)  # the first bytes; some are also a pickle's
_TENSORFLOW = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of a checkpoint
_STATE_DICT = "save its state_dict() by torch.save"
# Names in other kinds of zip archives, without the top folder, and what they are.
_ARCHIVES = {
    r"code/.*|constants\.pkl|model\.json": f"a TorchScript program, {_STATE_DICT}",
    r"archive_format|serialized_exported_program\.json": f"a torch.export program, {_STATE_DICT}",
    r"\.data/extern_modules": f"a torch.package archive, {_STATE_DICT}",
    r"(.*/)?[^/]*\.h5": "a Keras archive",
}
# NumPy's names for the number types of safetensors.
_TYPES = {f"{kind.upper()}{8 * n}": f"{kind}{n}" for kind in "fiu" for n in (1, 2, 4, 8)} | {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "BOOL": "bool",
}


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
    readers = {"torch": torch_file.read, "safetensors": _read_safetensors, "npz": _read_npz}
    found = kind(path, what)
    try:
        return readers[found](path)
    except UserError as error:  # it begins with the path
        raise UserError(f"{what}={error}") from error
    except Exception as error:  # a damaged file raises errors of many classes
        raise UserError(
            f"{what}={path} is not a valid {found} file: {first_line(error)}"
        ) from error


def kind(path: Path, what: str = "the file") -> str:
    """Kind of a file of weights by its first bytes: `torch`, `safetensors` or `npz`.

    Raises:
      UserError: if it is missing, cannot be read or is of another kind; says of which.
    """
    if os.path.isdir(path):
        raise UserError(f"{what}={path} is a folder; expected {_EXPECTED}")
    with readable(f"{what}={path}"), path.open("rb") as file:
        head = file.read(file_kind.HEAD)
        file.seek(-min(len(head), len(_TENSORFLOW)), os.SEEK_END)
        tail = file.read()
    if _SAFETENSORS.match(head):
        return "safetensors"
    found = "a TensorFlow checkpoint" if tail == _TENSORFLOW else file_kind.describe(head)
    if found == "a Python pickle":
        return "torch"
    if found == "a zip archive" and (found := _zip_kind(path)) in ("torch", "npz"):
        return found
    if found == "a tar archive":
        found = f"a tar archive: unpack it, or if it is in PyTorch's first format, {_STATE_DICT}"
    raise UserError(f"{what}={path} is {found or 'of an unknown kind'}; expected {_EXPECTED}")


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


def _read_npz(path: Path) -> dict[str, Any]:
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                value = found[name] = arrays[name]
            except ValueError as error:
                raise ValueError(f"{name}: {first_line(error)}") from error
            if isinstance(value, np.ndarray) and value.dtype.type is np.void:
                if value.dtype != "V2":
                    raise _unsupported(path, name, value.dtype)
                found[name] = value.view(ml_dtypes.bfloat16)  # saved as bytes without a type
    return found


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    found = {}
    # Sorted, as their order changes between runs.
    for name, tensor in sorted(safetensors.deserialize(path.read_bytes()), key=lambda x: x[0]):
        if tensor["dtype"] not in _TYPES:
            raise _unsupported(path, name, tensor["dtype"])
        values = np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]])
        found[name] = values.reshape(tensor["shape"])
    return found


def _unsupported(path: Path, name: str, dtype: object) -> UserError:
    return UserError(f"{path}: {name} is of type {dtype}, convert it to float32")
