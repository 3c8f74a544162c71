"""Writes files as `torch.save` does, without PyTorch."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_KINDS = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


class _Name:
    """Is pickled as the name of something in PyTorch."""

    def __init__(self, module: str, name: str):
        self.code = f"c{module}\n{name}\n".encode()

    def __call__(self):
        raise NotImplementedError


class _Pickler(pickle._Pickler):
    """Pickles arrays as tensors, whose numbers it collects in `storages`."""

    dispatch = pickle._Pickler.dispatch | {_Name: lambda self, name: self.write(name.code)}

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages: list[np.ndarray] = []

    def reducer_override(self, value):
        if not isinstance(value, np.ndarray):
            return NotImplemented
        strides = tuple(np.cumprod([1, *value.shape[:0:-1]])[::-1].tolist()) if value.ndim else ()
        self.storages.append(np.ascontiguousarray(value))
        storage = _Storage(len(self.storages) - 1, value.dtype, value.size)
        arguments = storage, 0, value.shape, strides, False, OrderedDict()
        return _Name("torch._utils", "_rebuild_tensor_v2"), arguments

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        kind = _Name("torch", _KINDS[value.dtype])
        return "storage", kind, str(value.key), "cpu", value.size


class _Storage:
    def __init__(self, key: int, dtype: np.dtype, size: int):
        self.key, self.dtype, self.size = key, dtype, size


def write(path: Path, content: Any, legacy: bool = False) -> Path:
    """Writes arrays in dicts and lists in the current format, or the one before PyTorch 1.6."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(content)
    if not legacy:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", file.getvalue())
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/version", "3\n")
            for key, values in enumerate(pickler.storages):
                archive.writestr(f"archive/data/{key}", values.tobytes())
        return path
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    keys = [str(key) for key in range(len(pickler.storages))]
    parts = [pickle.dumps(value, protocol=2) for value in head] + [file.getvalue()]
    parts.append(pickle.dumps(keys, protocol=2))
    for values in pickler.storages:
        parts.append(struct.pack("<q", values.size) + values.tobytes())
    path.write_bytes(b"".join(parts))
    return path
