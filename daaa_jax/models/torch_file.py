"""Reads tensors from a PyTorch file without PyTorch, and without running code from the file.

A PyTorch file is a pickle, which can call any function of any package. Here it can only name the
functions that rebuild tensors and ordered dicts, which are replaced by minimal versions of our own;
any other name is refused before it is looked up.
"""

import collections
import io
import math
import os
import pickle
import struct
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
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
            file.seek(0)
            return _read_zip(file) if is_zip else _read_legacy(file)
    except _Refused as error:
        raise UserError(
            f"{path} contains {error}, but only tensors and ordered dicts are read from a PyTorch "
            "file: save only the network's state_dict()"
        ) from error


class _Refused(Exception):
    """An object that is not a tensor or an ordered dict; the message names it."""


class _Fixed:
    """An object that a pickle can create but not change: its attributes are checked at creation."""

    __slots__ = ()

    def __setstate__(self, state):
        raise _Refused("an attempt to change what was read")


class _Storage(_Fixed):
    """The numbers that tensors are views of; a legacy file has them after the tensors."""

    __slots__ = ("dtype", "size", "values")

    def __init__(self, dtype: np.dtype, size: int):
        self.dtype, self.size = dtype, size
        self.values: np.ndarray | None = None


class _Tensor(_Fixed):
    """A view of a storage, not yet an array."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        whole = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(
            isinstance(value, int) and value >= 0 for value in whole
        ):
            raise ValueError("a tensor with impossible sizes")
        if len(shape) != len(strides):
            raise ValueError("a tensor whose strides do not fit its shape")
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and offset + last >= storage.size:
            raise ValueError("a tensor that reaches beyond its storage")
        if math.prod(shape) > storage.size:
            raise ValueError("a tensor with more values than its storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        values = self.storage.values
        if values is None:
            raise ValueError("a tensor without its numbers")
        if not math.prod(self.shape):
            return np.empty(self.shape, values.dtype)
        strides = [stride * values.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides)
        return view.copy()


class _Callable(_Fixed):
    """A function that a pickle is allowed to call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)


def _rebuild_tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    if not isinstance(tensor, _Tensor):
        raise ValueError("a parameter that is not a tensor")
    return tensor


class _OrderedDict(collections.OrderedDict):
    """An ordered dict whose attributes, such as a state dict's `_metadata`, are dropped."""

    def __setstate__(self, state):
        pass


_NAMES = {
    ("collections", "OrderedDict"): _Callable(_OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_rebuild_parameter),
}


class _Unpickler(pickle.Unpickler):
    """Resolves only the names in `_NAMES` and storages; `storage` finds one by its key."""

    def __init__(self, file: BinaryIO, storage: Callable[[str, np.dtype, int], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

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
        return self._storage(str(name), _STORAGES[kind], size)


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = {info.filename: info for info in archive.infolist()}
        roots = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("a zip archive without data.pkl")
        if any(info.compress_type for info in names.values()):
            # torch.save never compresses; a small compressed archive could unpack to any size.
            raise ValueError("a compressed zip archive")
        root = roots[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        if order != b"little":
            raise ValueError("numbers in big-endian order")
        storages: dict[str, _Storage] = {}

        def storage(key: str, dtype: np.dtype, size: int) -> _Storage:
            if key not in storages:
                info = names[f"{root}data/{key}"]
                if info.file_size < size * dtype.itemsize:
                    raise ValueError(f"storage {key} has {info.file_size} bytes, not {size} values")
                storages[key] = found = _Storage(dtype, size)
                found.values = np.frombuffer(archive.read(info), dtype, size)
            elif storages[key].dtype != dtype or storages[key].size != size:
                raise ValueError(f"storage {key} is described in two ways")
            return storages[key]

        content = _Unpickler(io.BytesIO(archive.read(roots[0])), storage).load()
        return _arrays(content, _VIEWS * sum(info.file_size for info in names.values()))


def _read_legacy(file: BinaryIO) -> Any:
    storages: dict[str, _Storage] = {}
    length = os.fstat(file.fileno()).st_size

    def refuse(key: str, *_) -> _Storage:
        raise ValueError("a tensor before the tensors begin")

    def storage(key: str, dtype: np.dtype, size: int) -> _Storage:
        if size * dtype.itemsize > length:
            raise ValueError(f"storage {key} should hold {size} values, more than the file")
        found = storages.setdefault(key, _Storage(dtype, size))
        if found.dtype != dtype or found.size != size:
            raise ValueError(f"storage {key} is described in two ways")
        return found

    if _Unpickler(file, refuse).load() != _MAGIC or _Unpickler(file, refuse).load() != _PROTOCOL:
        raise ValueError("a pickle that torch.save did not write")
    if not _Unpickler(file, refuse).load()["little_endian"]:
        raise ValueError("numbers in big-endian order")
    content = _Unpickler(file, storage).load()
    for key in _Unpickler(file, refuse).load():
        found = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        content_bytes = file.read(found.size * found.dtype.itemsize)
        if count != found.size or len(content_bytes) != found.size * found.dtype.itemsize:
            raise ValueError("it is cut short")
        found.values = np.frombuffer(content_bytes, found.dtype)
    return _arrays(content, _VIEWS * length)


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
            made: np.ndarray | dict | list | tuple = value.array()
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
