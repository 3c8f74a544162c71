"""Decodes photos of any size and mode to one size; reports those that cannot be read."""

import contextlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from daaa_jax.runtime.progress import Progress

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Detected by content, not suffix. For some other formats, Pillow would start other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_TURNS = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MOST_PIXELS = 100_000_000  # a file of a few kilobytes may claim more than fits in memory
# Pillow warns of images somewhat below this limit, which are accepted.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """An image file that cannot be decoded; the message gives the reason."""


def read(path: Path, size: int) -> np.ndarray:
    """Decodes an image and resizes it to a square, ignoring the aspect ratio.

    Applies the EXIF orientation, makes transparent pixels white, converts grey, palette, CMYK and
    16-bit images to 8-bit RGB, and takes the first frame of an animation. The aspect ratio was
    commonly ignored at the time of the paper.

    Args:
      path: the file.
      size: height and width of the result.

    Returns:
      uint8 `[size,size,3]`.

    Raises:
      UnreadableImage: if it is not an image, is damaged or truncated, or claims over 10^8 pixels.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                raise UnreadableImage(
                    f"it claims {width} x {height} pixels, more than {_MOST_PIXELS:,}"
                )
            image.load()
            rgb = _to_rgb(_upright(image))
            return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many classes
        if isinstance(error, OSError) and error.strerror:
            raise UnreadableImage(error.strerror.lower()) from error
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def try_read(path: Path, size: int) -> np.ndarray | str:
    """`read`, but returns the reason where it would raise `UnreadableImage`."""
    try:
        return read(path, size)
    except UnreadableImage as error:
        return str(error)


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation, even if other parts of the EXIF are damaged.

    `ImageOps.exif_transpose` rewrites the whole EXIF, and fails if a part of it is damaged.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the EXIF cannot be read at all
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        clear = values == image.info.get("transparency", -1)
        # Mode I;16 is 16-bit; for other modes, the values show the range.
        if image.mode.startswith("I;16") or values.max() > 255:
            largest = 65535
        else:
            largest = 1 if image.mode == "F" and values.max() <= 1 else 255
        values = np.where(clear, largest, values)
        image = Image.fromarray(np.clip(values / largest * 255, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_all(paths: Sequence[Path], images: np.ndarray, name: str) -> dict[int, str]:
    """Decodes images on several threads.

    Args:
      paths: the files.
      images: output, filled with zeros, uint8 `[N,size,size,3]`; may be a memory map.
      name: name of the set for the progress bar; empty for no bar.

    Returns:
      Reasons by position for the images that cannot be read; these stay black.
    """
    size = images.shape[1]
    unreadable: dict[int, str] = {}

    def one(position: int) -> None:
        found = try_read(paths[position], size)
        if isinstance(found, str):
            unreadable[position] = found
        else:
            images[position] = found

    with (
        Progress(f"decode {name}", len(paths)) if name else contextlib.nullcontext() as progress,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        for done, _ in enumerate(threads.map(one, range(len(paths))), start=1):
            if progress and (done % 100 == 0 or done == len(paths)):
                progress.update(done, {})
    return dict(sorted(unreadable.items()))
