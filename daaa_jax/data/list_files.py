"""Which files lie below a folder: links are followed, and a folder that may not be read is told."""

import os
from pathlib import Path

from daaa_jax.errors import UserError


def files(folder: Path) -> list[Path]:
    """All files in a folder and in the folders within it, sorted, hidden ones left out.

    Raises:
      UserError: if one of the folders cannot be read; `Path.rglob` would pass it over.
    """
    try:
        return _files(folder)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()  # links may lead round in a circle
    for place, below, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(
            name for name in below if not (name.startswith(".") or _leads_up(place, name, real))
        )
        found += (Path(place, name) for name in names if not name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _leads_up(place: str, name: str, real: str) -> bool:
    """Whether a folder is a link to one that it lies in, whose files are not its own."""
    path = os.path.join(place, name)
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    return os.path.commonpath([target, real]) == target


def _refuse(error: OSError) -> None:
    raise error
