"""Arrays that took long to decode, kept in the user's cache folder; a convenience, never a need."""

import contextlib
import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

# What NumPy raises on a file that was cut short, emptied or written over.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


def folder() -> Path:
    """`~/.cache/daaa_jax`, or where the environment variable `DAAA_CACHE` says."""
    return Path(os.environ.get("DAAA_CACHE") or Path.home() / ".cache" / "daaa_jax")


def identity(origin: Path, kind: str) -> str:
    """Names what was decoded of a file: the same path, size and time of change, and `kind`."""
    status = origin.stat()
    return f"{kind} {origin.resolve()} {status.st_size} {status.st_mtime_ns}"


def get(name: str, decode: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Decodes, or takes what was decoded under the same name before.

    Args:
      name: says of what, in which state, and in which way and version of it; of any length.
      decode: makes the arrays.

    Returns:
      Arrays by name. A cache that cannot be written or read is passed over.
    """
    try:
        path = folder() / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"
    except RuntimeError:  # no home folder at all
        return decode()
    with contextlib.suppress(*_DAMAGED), np.load(path) as arrays:
        return dict(arrays)
    arrays = decode()
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return arrays
