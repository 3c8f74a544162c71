"""Lists the files below a folder; follows links, and refuses folders that cannot be read."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from daaa_jax.errors import UserError


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turns an error of a folder that cannot be read into a `UserError`; also a decorator."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


@readable()
def files(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, sorted, without hidden ones.

    Raises:
      UserError: if one of the folders cannot be read; `Path.rglob` would skip it.
    """
    found: list[Path] = []
    seen: set[str] = set()  # links may form a cycle
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


def files_in_any_case(folder: Path) -> list[Path]:
    """`files` of a folder, and of those beside it with that name but for capitals and dashes.

    For instance, torchvision writes `MNIST/raw/`. Empty if there is no such folder.

    Raises:
      UserError: if one of the folders cannot be read.
    """

    def plain(path: Path) -> str:
        return path.name.lower().replace("-", "_")

    places = [path for path in sorted(folder.parent.glob("*")) if plain(path) == plain(folder)]
    # The names of `.` and `..` match none.
    return [file for place in places or [folder] if place.is_dir() for file in files(place)]


def _leads_up(place: str, name: str, real: str) -> bool:
    """Whether a folder is a link to a folder that contains it."""
    path = os.path.join(place, name)
    target = os.path.realpath(path)
    return os.path.islink(path) and os.path.commonpath([target, real]) == target


def _refuse(error: OSError) -> None:
    raise error
