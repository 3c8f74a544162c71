"""Photos of any size and mode, decoded to one size; what cannot be read is told, not guessed."""

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
# By their content, whatever the ending: Pillow knows more, and starts other programs for some.
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
_MOST_PIXELS = 100_000_000  # a file of some kilobytes may claim more than any memory holds
# Pillow warns of somewhat fewer, which are welcome.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """An image file that cannot be decoded; says why."""


def read(path: Path, size: int) -> np.ndarray:
    """Decodes an image and resizes it, its aspect not kept (as the paper's time did).

    Turned as its EXIF orientation says; what is transparent becomes white; grey, palette, CMYK and
    16-bit images become RGB of 8 bits; of an animation, the first frame.

    Args:
      path: the file.
      size: height and width of the result.

    Returns:
      uint8 `[size,size,3]`.

    Raises:
      UnreadableImage: if it is no image, is damaged or cut short, or claims more pixels than 10^8.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                raise UnreadableImage(
                    f"it claims {width} x {height} pixels, more than {_MOST_PIXELS:,}"
                )
            image.load()
            image = _to_rgb(_upright(image))
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise what their parsers happen to
        if isinstance(error, OSError) and error.strerror:
            raise UnreadableImage(error.strerror.lower()) from error
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, whatever else the EXIF holds.

    `ImageOps.exif_transpose` writes the whole EXIF anew, and fails where a part of it is damaged.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # so damaged that it cannot be read at all
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        clear = values == image.info.get("transparency", -1)
        # What says that it has 16 bits has; of others only the values tell.
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
      images: where to put them, zeros, uint8 `[N,size,size,3]`; may be a memory map.
      name: of the set, for the progress bar; empty for none.

    Returns:
      The position and the reason of those that cannot be read; they stay black.
    """
    size = images.shape[1]
    unreadable: dict[int, str] = {}

    def one(position: int) -> None:
        try:
            images[position] = read(paths[position], size)
        except UnreadableImage as error:
            unreadable[position] = str(error)

    with (
        Progress(f"decode {name}", len(paths)) if name else contextlib.nullcontext() as progress,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        for done, _ in enumerate(threads.map(one, range(len(paths))), start=1):
            if progress and (done % 100 == 0 or done == len(paths)):
                progress.update(done, {})
    return dict(sorted(unreadable.items()))
