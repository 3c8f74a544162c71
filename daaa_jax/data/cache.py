"""Disk cache for arrays that are slow to decode; everything also works without it."""

import contextlib
import hashlib
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

# Raised by NumPy for a truncated, empty or overwritten file.
_DAMAGED = (OSError, EOFError, ValueError, TypeError)
_SPARE = 2**28  # bytes to leave free: a memory map on a full disk kills the process


def folder() -> Path:
    """The cache folder: the environment variable `DAAA_CACHE`, or `~/.cache/daaa_jax`.

    Without a home folder, as in some containers, it is among the temporary files.
    """
    home = os.path.expanduser("~")
    home = tempfile.gettempdir() if home == "~" else home
    return Path(os.path.expanduser(os.environ.get("DAAA_CACHE") or f"{home}/.cache/daaa_jax"))


def unfinished(path: Path) -> Path:
    """Temporary name for an unfinished file, unique per host and process, as hosts may share it."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def identity(origin: Path, kind: str) -> str:
    """Cache name for a decoded file; changes with its path, size, modification time and `kind`."""
    status = origin.stat()
    return f"{kind} {origin.resolve()} {status.st_size} {status.st_mtime_ns}"


# Makes an array of zeros by name, shape and type, in the cache folder if possible.
New = Callable[[str, tuple[int, ...], type], np.ndarray]


def get(
    name: str, arrays: Sequence[str], decode: Callable[[New], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """Returns arrays from the cache, or decodes and caches them.

    Args:
      name: identifies the input, its state, and the decoder and its version; of any length.
      arrays: names of the arrays.
      decode: makes the arrays; should allocate large ones with the function that it is given.

    Returns:
      Arrays by name; those from the disk are read-only memory maps. A cache that cannot be read or
      written is ignored.
    """
    place = _place(name)
    with contextlib.suppress(*_DAMAGED):
        return _open(place, arrays)
    temporary = unfinished(place)
    _drop_unfinished(place)

    def new(key: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with contextlib.suppress(*_DAMAGED):
            if shutil.disk_usage(temporary).free >= size + _SPARE:
                return np.lib.format.open_memmap(temporary / f"{key}.npy", "w+", dtype, shape)
        return np.zeros(shape, dtype)

    try:
        with contextlib.suppress(*_DAMAGED):
            temporary.mkdir(parents=True)
        decoded = decode(new)
        with contextlib.suppress(*_DAMAGED):
            for key in arrays:
                array = decoded[key]
                if isinstance(array, np.memmap):
                    array.flush()
                else:
                    np.save(temporary / f"{key}.npy", array)
            try:
                temporary.rename(place)
            except OSError:
                # Another process was faster and may have the files open, or they are damaged.
                with contextlib.suppress(*_DAMAGED):
                    return _open(place, arrays)
                shutil.rmtree(place, ignore_errors=True)
                temporary.rename(place)
            return _open(place, arrays)
        return decoded
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _drop_unfinished(place: Path) -> None:
    """Removes temporary folders of processes of this host that were killed while decoding."""
    for temporary in place.parent.glob(f".{place.name}.{socket.gethostname()}.*.tmp"):
        try:
            os.kill(int(temporary.suffixes[-2][1:]), 0)
        except ProcessLookupError:
            shutil.rmtree(temporary, ignore_errors=True)
        except (ValueError, OSError):  # another user's process
            continue


def drop(name: str) -> None:
    """Removes the arrays cached under a name."""
    shutil.rmtree(_place(name), ignore_errors=True)


def _place(name: str) -> Path:
    return folder() / hashlib.sha256(name.encode()).hexdigest()[:24]


def _open(place: Path, arrays: Sequence[str]) -> dict[str, np.ndarray]:
    return {key: np.load(place / f"{key}.npy", mmap_mode="r") for key in arrays}
