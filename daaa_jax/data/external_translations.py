"""Translations by an external generator: one image file per original, found by its path."""

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from daaa_jax.data import folders, image_files
from daaa_jax.errors import UserError
from daaa_jax.runtime.files import expanded


def find(root: Path, originals: Sequence[PurePath]) -> tuple[Path, ...]:
    """Finds the translation of each original.

    Args:
      root: folder of the translations.
      originals: paths of the originals within their domain. A translation has the same path, but
        may have another image suffix: `mug/frame_0001.jpg` also translates `mug/frame_0001.png`.

    Raises:
      UserError: lists every original without a translation, or with more than one.
    """
    found: dict[PurePath, list[Path]] = {}
    for path in image_files.scan(root).images:
        found.setdefault(path.relative_to(root).with_suffix(""), []).append(path)
    stems = [original.with_suffix("") for original in originals]
    missing = [str(original) for original in originals if original.with_suffix("") not in found]
    surplus = [str(path) for stem in stems for path in found.get(stem, ())[1:]]
    clashes = len(stems) - len(set(stems))
    problems = {
        f"no translation of {len(missing)} of {len(stems)} images: {', '.join(missing)}": missing,
        f"an image has more than one translation: {', '.join(surplus)}": surplus,
        f"originals that differ only in their suffix: {clashes}": clashes,
    }
    if any(problems.values()):
        raise UserError(f"{root}: {'; '.join(text for text, odd in problems.items() if odd)}")
    return tuple(found[stem][0] for stem in stems)


def read(folder: str, direction: str, originals: Sequence[PurePath], size: int) -> np.ndarray:
    """Reads the translations in the order of the originals, uint8 `[N,size,size,3]`.

    Args:
      folder: contains one folder per direction.
      direction: name of that folder, such as `amazon_to_webcam`.
      originals: see `find`.
      size: height and width to resize them to, pixels.

    Raises:
      UserError: see `find`; also lists the translations that cannot be read.
    """
    root = expanded(folder) / direction
    if not root.is_dir():
        raise UserError(
            f"pair.translations={folder} holds no folder {direction}: put the translation of each "
            "image of the first domain there, under the path of the original"
        )
    paths = find(root, originals)
    labels = np.full(len(paths), folders.UNKNOWN, np.int32)
    listing = folders.Listing(direction, root, (), labels, paths)
    images, reasons, _ = folders.decode_all(listing, size)
    if bad := [(path, why) for path, why in zip(paths, reasons, strict=True) if why]:
        raise folders.unreadable("translation", bad, "make them again")
    return images
