"""Translations made by any other generator: an image file for each original, found by its name."""

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from daaa_jax.data import folders, list_files, photos
from daaa_jax.errors import UserError


def find(folder: str | Path, direction: str, originals: Sequence[PurePath]) -> list[Path]:
    """The translation of each original.

    Args:
      folder: holds a folder for each direction, such as `amazon_to_webcam`.
      direction: which.
      originals: paths of the originals within their domain. A translation has the same path, with
        the ending of any image: `mug/frame_0001.jpg` is that of `mug/frame_0001.png` too.

    Raises:
      UserError: names every original without a translation, or with more than one.
    """
    root = Path(folder).expanduser() / direction
    if not root.is_dir():
        raise UserError(
            f"pair.translations={folder} holds no folder {direction}: put each image of the first "
            "domain, translated, there under its own name"
        )
    found: dict[PurePath, list[Path]] = {}
    for path in list_files.files(root):
        if path.suffix.lower() in photos.SUFFIXES:
            found.setdefault(path.relative_to(root).with_suffix(""), []).append(path)
    stems = [original.with_suffix("") for original in originals]
    missing = [str(o) for o, stem in zip(originals, stems, strict=True) if stem not in found]
    doubled = [str(path) for stem in stems for path in found.get(stem, ())[1:]]
    twins = len(stems) - len(set(stems))
    if missing or doubled or twins:
        problems = [
            f"{len(missing)} of {len(stems)} images have no translation: {', '.join(missing)}"
            if missing
            else "",
            f"there is more than one for an image: {', '.join(doubled)}" if doubled else "",
            f"{twins} originals differ in their ending alone" if twins else "",
        ]
        raise UserError(f"{root}: {'; '.join(filter(None, problems))}")
    return [found[stem][0] for stem in stems]


def read(
    folder: str | Path, direction: str, originals: Sequence[PurePath], size: int
) -> np.ndarray:
    """The translations in the order of their originals, uint8 `[N,size,size,3]`.

    Raises:
      UserError: see `find`; or names those that cannot be read.
    """
    paths = tuple(find(folder, direction, originals))
    labels = np.full(len(paths), folders.UNKNOWN, np.int32)
    root = Path(folder).expanduser() / direction
    listing = folders.Listing(direction, root, classes=(), paths=paths, labels=labels, others=())
    images, reasons = folders.decode_all(listing, size)
    bad = np.flatnonzero(reasons != "")
    if len(bad):
        lines = "\n".join(f"  {paths[i]}: {reasons[i]}" for i in bad)
        raise UserError(f"{len(bad)} translations in {root} cannot be read; mend them\n{lines}")
    return images
