"""Reads tensors from a PyTorch file without PyTorch, and without running code from the file.

A PyTorch file is a pickle, which can call any function of any package. Here it can only name the
functions that rebuild tensors and ordered dicts, which are replaced by minimal versions of our own;
any other name is refused before it is looked up.
"""

import collections
import functools
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from daaa_jax.errors import UserError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before PyTorch 1.6
_VIEWS = 4  # arrays may take this many times the file's size, as tensors may share numbers
_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def read(path: Path) -> Any:
    """Reads the object in a PyTorch file, with tensors as NumPy arrays that share no memory.

    Args:
      path: a file written by `torch.save`, in the current format (a zip archive) or the one before
        PyTorch 1.6.

    Returns:
      Dicts, lists, tuples, numbers and strings as they were saved, tensors as arrays.

    Raises:
      UserError: if the file contains anything else.
      Exception: of many classes, if it is damaged or cannot be read.
    """
    length = path.stat().st_size
    try:
        with path.open("rb") as file:
            content = _read_zip(file) if zipfile.is_zipfile(path) else _read_legacy(file, length)
        return _arrays(content, _VIEWS * length)
    except _Refused as error:
        raise UserError(
            f"{path} contains {error}, but only tensors and ordered dicts are read from a PyTorch "
            "file: save only the network's state_dict()"
        ) from error


class _Refused(Exception):
    """An object that is not a tensor or an ordered dict; the message names it."""


class _Fixed:
    """An object that a pickle can create but not change: it is checked at creation."""

    def __setstate__(self, state):
        raise _Refused("an attempt to change what was read")


class _Storage(_Fixed, np.ndarray):
    """The numbers that tensors are views of; those of a legacy file follow after the tensors."""


class _Tensor(_Fixed, np.ndarray):
    """A view of a storage."""


class _Callable(_Fixed, functools.partial):
    """A function that a pickle is allowed to call."""


def _rebuild_tensor(storage, offset, shape, strides, *_):
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(isinstance(n, int) and n >= 0 for n in sizes):
        raise ValueError("a tensor with impossible sizes")
    if len(shape) != len(strides):
        raise ValueError("a tensor whose strides do not fit its shape")
    if not math.prod(shape):
        return np.empty(shape, storage.dtype).view(_Tensor)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if offset + last >= storage.size:
        raise ValueError("a tensor that reaches beyond its storage")
    if math.prod(shape) > storage.size:
        raise ValueError("a tensor with more values than its storage")
    in_bytes = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes).view(_Tensor)


class _OrderedDict(collections.OrderedDict):
    """An ordered dict whose attributes, such as a state dict's `_metadata`, are dropped."""

    def __setstate__(self, state):
        pass


_NAMES = {
    ("collections", "OrderedDict"): _Callable(_OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(lambda tensor, *_: tensor),
}


class _Unpickler(pickle.Unpickler):
    """Resolves only the names in `_NAMES` and storages.

    Attributes:
      storages: those that tensors refer to, by name.
    """

    def __init__(self, file: BinaryIO, create: Callable[[str, np.dtype, int], np.ndarray]):
        """`create` makes a storage from its name, type and size."""
        super().__init__(file, encoding="utf-8")
        self._create = create
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return name
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, key: Any) -> _Storage:
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage":
            raise _Refused(f"a reference of kind {key[0] if isinstance(key, tuple) else key!r}")
        _, kind, name, _, size, *view = key
        if any(part is not None for part in view):
            raise _Refused("a view of a storage")
        if kind not in _STORAGES or not isinstance(size, int) or size < 0:
            raise ValueError("a storage of unknown kind or size")
        name, dtype = str(name), _STORAGES[kind]
        if name not in self.storages:
            self.storages[name] = self._create(name, dtype, size).view(_Storage)
        found = self.storages[name]
        if found.dtype != dtype or found.size != size:
            raise ValueError(f"storage {name} is described in two ways")
        return found


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        roots = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("a zip archive without data.pkl")
        if any(info.compress_type for info in archive.infolist()):
            # torch.save never compresses; a small compressed archive could unpack to any size.
            raise ValueError("a compressed zip archive")
        root = roots[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        if order != b"little":
            raise ValueError("numbers in big-endian order")

        def create(name: str, dtype: np.dtype, size: int) -> np.ndarray:
            info = archive.getinfo(f"{root}data/{name}")
            if info.file_size < size * dtype.itemsize:
                raise ValueError(f"storage {name} has {info.file_size} bytes, not {size} values")
            return np.frombuffer(archive.read(info), dtype, size)

        return _Unpickler(io.BytesIO(archive.read(roots[0])), create).load()


def _read_legacy(file: BinaryIO, length: int) -> Any:
    def refuse(*_) -> np.ndarray:
        raise ValueError("a tensor before the tensors begin")

    def create(name: str, dtype: np.dtype, size: int) -> np.ndarray:
        if size * dtype.itemsize > length:
            raise ValueError(f"storage {name} should hold {size} values, more than the file")
        return np.empty(size, dtype)  # filled below

    if _Unpickler(file, refuse).load() != _MAGIC or _Unpickler(file, refuse).load() != _PROTOCOL:
        raise ValueError("a pickle that torch.save did not write")
    if not _Unpickler(file, refuse).load()["little_endian"]:
        raise ValueError("numbers in big-endian order")
    tensors = _Unpickler(file, create)
    content = tensors.load()
    for name in _Unpickler(file, refuse).load():
        storage = tensors.storages.pop(name)
        count = int.from_bytes(file.read(8), "little")
        numbers = file.read(storage.nbytes)
        if count != storage.size or len(numbers) != storage.nbytes:
            raise ValueError("it is cut short")
        storage[:] = np.frombuffer(numbers, storage.dtype)
    if tensors.storages:
        raise ValueError("a tensor without its numbers")
    return content


def _arrays(value: Any, most: int, done: dict[int, Any] | None = None) -> Any:
    """Replaces tensors by arrays, recursively; each object is converted once.

    Args:
      value: the unpickled object.
      most: limit on the total bytes of the arrays.
      done: converted objects, by the identity of the original.

    Raises:
      ValueError: if the arrays exceed `most`, as any number of tensors may share numbers.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    done = {} if done is None else done
    if id(value) not in done:
        if isinstance(value, _Tensor):
            made: np.ndarray | dict | list | tuple = np.array(value, order="C")
            if sum(x.nbytes for x in (*done.values(), made) if isinstance(x, np.ndarray)) > most:
                raise ValueError("tensors that are views of the same numbers too often")
        elif isinstance(value, Mapping):
            made = {key: _arrays(item, most, done) for key, item in value.items()}
        elif isinstance(value, (list, tuple)):
            made = type(value)(_arrays(item, most, done) for item in value)
        else:
            raise _Refused(f"an object of type {type(value).__name__}")
        done[id(value)] = made
    return done[id(value)]
