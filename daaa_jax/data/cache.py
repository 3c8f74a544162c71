"""Arrays that took long to decode, kept in the user's cache folder; a convenience, never a need."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

# What NumPy raises on a file that was cut short, emptied or written over.
_DAMAGED = (OSError, EOFError, ValueError, TypeError)


def folder() -> Path:
    """`~/.cache/daaa_jax`, or where the environment variable `DAAA_CACHE` says."""
    return Path(os.environ.get("DAAA_CACHE") or Path.home() / ".cache" / "daaa_jax")


def identity(origin: Path, kind: str) -> str:
    """Names what was decoded of a file: the same path, size and time of change, and `kind`."""
    status = origin.stat()
    return f"{kind} {origin.resolve()} {status.st_size} {status.st_mtime_ns}"


def get(
    name: str, arrays: Sequence[str], decode: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """Decodes, or takes what was decoded under the same name before.

    Args:
      name: says of what, in which state, and in which way and version of it; of any length.
      arrays: the names of the arrays.
      decode: makes them.

    Returns:
      Arrays by name; memory maps, not to be written to, where they come from the disk. A cache that
      cannot be written or read is passed over.
    """
    try:
        place = folder() / hashlib.sha256(name.encode()).hexdigest()[:24]
    except RuntimeError:  # no home folder at all
        return decode()
    with contextlib.suppress(*_DAMAGED):
        return _open(place, arrays)
    decoded = decode()
    temporary = place.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(*_DAMAGED):
        try:
            temporary.mkdir(parents=True)
            for key in arrays:
                np.save(temporary / f"{key}.npy", decoded[key])
            shutil.rmtree(place, ignore_errors=True)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _open(place, arrays)
    return decoded


def _open(place: Path, arrays: Sequence[str]) -> dict[str, np.ndarray]:
    return {key: np.load(place / f"{key}.npy", mmap_mode="r") for key in arrays}
