"""Arrays that took long to decode, kept in the user's cache folder; a convenience, never a need."""

import contextlib
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

# What NumPy raises on a file that was cut short, emptied or written over.
_DAMAGED = (OSError, EOFError, ValueError, TypeError)
_SPARE = 2**28  # bytes left on a disk; a memory map on a full one ends the process


def folder() -> Path:
    """`~/.cache/daaa_jax`, or where the environment variable `DAAA_CACHE` says."""
    return Path(os.environ.get("DAAA_CACHE") or Path.home() / ".cache" / "daaa_jax")


def unfinished(path: Path) -> Path:
    """Another name for what is not whole yet, of this process alone: hosts may share a cache."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def identity(origin: Path, kind: str) -> str:
    """Names what was decoded of a file: the same path, size and time of change, and `kind`."""
    status = origin.stat()
    return f"{kind} {origin.resolve()} {status.st_size} {status.st_mtime_ns}"


# Makes an array of zeros by name, shape and type: on the disk where it will be kept.
New = Callable[[str, tuple[int, ...], type], np.ndarray]


def get(
    name: str, arrays: Sequence[str], decode: Callable[[New], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """Decodes, or takes what was decoded under the same name before.

    Args:
      name: says of what, in which state, and in which way and version of it; of any length.
      arrays: the names of the arrays.
      decode: makes them; a large one is best made by the function that it is given.

    Returns:
      Arrays by name; memory maps, not to be written to, where they come from the disk. A cache that
      cannot be written or read is passed over.
    """
    place = _place(name)
    if place is None:
        return decode(_in_memory)
    with contextlib.suppress(*_DAMAGED):
        return _open(place, arrays)
    temporary = unfinished(place)
    _drop_halves(place)

    def new(key: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        try:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            if shutil.disk_usage(temporary).free < size + _SPARE:
                return _in_memory(key, shape, dtype)
            return np.lib.format.open_memmap(temporary / f"{key}.npy", "w+", dtype, shape)
        except _DAMAGED:
            return _in_memory(key, shape, dtype)

    try:
        with contextlib.suppress(*_DAMAGED):
            temporary.mkdir(parents=True)
        decoded = decode(new)
        with contextlib.suppress(*_DAMAGED):
            for key in arrays:
                if isinstance(decoded[key], np.memmap):
                    decoded[key].flush()
                else:
                    np.save(temporary / f"{key}.npy", decoded[key])
            try:
                temporary.rename(place)
            except OSError:
                # Another process has been quicker and may have them open; or they are damaged.
                with contextlib.suppress(*_DAMAGED):
                    return _open(place, arrays)
                shutil.rmtree(place, ignore_errors=True)
                temporary.rename(place)
            return _open(place, arrays)
        return decoded
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _drop_halves(place: Path) -> None:
    """Removes what processes of this host have left that were killed while they decoded it."""
    for half in place.parent.glob(f".{place.name}.{socket.gethostname()}.*.tmp"):
        try:
            os.kill(int(half.suffixes[-2][1:]), 0)
        except ProcessLookupError:
            shutil.rmtree(half, ignore_errors=True)
        except (ValueError, OSError):  # another user's
            continue


def drop(name: str) -> None:
    """Forgets what was decoded under a name."""
    if (place := _place(name)) is not None:
        shutil.rmtree(place, ignore_errors=True)


def _place(name: str) -> Path | None:
    try:
        return folder() / hashlib.sha256(name.encode()).hexdigest()[:24]
    except RuntimeError:  # no home folder at all
        return None


def _in_memory(key: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.zeros(shape, dtype)


def _open(place: Path, arrays: Sequence[str]) -> dict[str, np.ndarray]:
    return {key: np.load(place / f"{key}.npy", mmap_mode="r") for key in arrays}
