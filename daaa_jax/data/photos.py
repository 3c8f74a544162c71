"""Decodes photos of any size and mode to one size; reports those that cannot be read.

Values become pixels by one rule for each number type of a domain (`value_ranges`).
"""

import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from daaa_jax.errors import reason
from daaa_jax.runtime import file_kind
from daaa_jax.runtime.progress import Progress

# Values shown as black and as white, by number type: unsigned, signed, float.
ValueRanges = Mapping[str, Sequence[float]]

Image.init()
# What Pillow recognises by the first bytes and decodes itself, without another program.
_FORMATS = sorted(Image.OPEN.keys() & {
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO",
    "JPEG", "JPEG2000", "MSP", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TIFF",
    "WEBP", "XBM", "XPM",
})  # fmt: skip
_WITHOUT_SIGNATURE = {suffix: ("TGA",) for suffix in (".tga", ".icb", ".vda", ".vst")}
# Camera files: Pillow would read the small preview in some of them.
_RAW = {
    ".3fr", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq",
    ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl",
    ".sr2", ".srf", ".srw", ".x3f",
}  # fmt: skip
_NOT_READ = _RAW | {".heic", ".heif", ".hif", ".avif", ".jxl", ".svg", ".psb"}
SUFFIXES = _NOT_READ | set(_WITHOUT_SIGNATURE)
SUFFIXES |= {end for end, name in Image.registered_extensions().items() if name in _FORMATS}
_TURNS = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAMPLE_FORMAT, _SIGNED = 339, 2  # a tag of TIFF
_LARGE = 25_000_000  # pixels from which images are decoded one at a time, reduced where possible
_one_large = threading.Lock()
_AHEAD = 8  # images decoded ahead of their use, per thread
# Pillow warns of images above half of its limit of 179 million pixels, which are accepted.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Metadata of more than one megabyte is common, for example of editors that store their history.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28


class UnreadableImage(Exception):
    """An image file that cannot be decoded; the message gives the reason."""


def starts_as_image(path: Path) -> bool:
    """Whether a file's first bytes are those of an image, or the file cannot be opened."""
    try:
        if file_kind.describe_file(path).endswith("image"):
            return True
        with Image.open(path, formats=_FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # Pillow recognised it, and raises errors of many classes; or no permission
        return True


def read(path: Path, size: int, ranges: ValueRanges | None = None) -> np.ndarray:
    """Decodes an image and resizes it to a square, ignoring the aspect ratio.

    Applies the EXIF orientation, makes transparent pixels white, converts grey, palette, CMYK and
    16-bit images to 8-bit RGB, and takes the first frame of an animation. An image that is
    transparent everywhere is read as opaque. The aspect ratio was commonly ignored at the time of
    the paper.

    Args:
      path: the file.
      size: height and width of the result.
      ranges: of its domain, from `value_ranges`; the range of the image itself for a number type
        that is not among them.

    Returns:
      uint8 `[size,size,3]`.

    Raises:
      UnreadableImage: if it is not an image, is damaged or truncated, claims over 179 million
        pixels, or holds NaN or infinite values.
    """
    with opened(path, size) as image:
        rgb = _upright(_to_rgb(image, ranges or {}), image)
        return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR))


def try_read(path: Path, size: int, ranges: ValueRanges | None = None) -> np.ndarray | str:
    """`read`, but returns the reason where it would raise `UnreadableImage`."""
    try:
        return read(path, size, ranges)
    except UnreadableImage as error:
        return str(error)


def value_ranges(paths: Sequence[Path]) -> dict[str, list[float]]:
    """Values shown as black and white, by number type, of the images of a domain.

    Images of 8 bits have none, and are never rescaled. Unsigned integers of more bits: zero and the
    largest number of the bits in use over the domain, at least eight. Signed integers and floats:
    the smallest and largest value of the domain.
    """

    def extremes(path: Path) -> tuple[str, float, float] | None:
        with contextlib.suppress(UnreadableImage), opened(path) as image:
            if grey := _deep_grey(image):
                kind, values = grey
                return kind, float(values.min()), float(values.max())
        return None

    found: dict[str, tuple[float, float]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for kind, low, high in filter(None, threads.map(extremes, paths)):
            lowest, highest = found.get(kind, (low, high))
            found[kind] = min(low, lowest), max(high, highest)
    return {kind: _range(kind, *found[kind]) for kind in sorted(found)}


@contextlib.contextmanager
def opened(path: Path, size: int = 0) -> Iterator[Image.Image]:
    """Opens an image; errors within the block are of the image, and raise `UnreadableImage`.

    With a size, JPEGs of many pixels are decoded at a reduced one, at least four times as large.
    """
    try:
        if (suffix := path.suffix.lower()) in _RAW:
            raise UnreadableImage(f"a camera's raw file ({suffix}): convert it to JPEG or PNG")
        if path.exists() and not path.is_file():
            raise UnreadableImage("not a file")
        with Image.open(path, formats=(*_FORMATS, *_WITHOUT_SIGNATURE.get(suffix, ()))) as image:
            large = image.width * image.height > _LARGE
            with _one_large if large else contextlib.nullcontext():
                if large and size:
                    image.draft(image.mode, (4 * size, 4 * size))
                yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        kind = file_kind.describe_file(path) or "of an unknown kind"
        remedy = "cannot be decoded" if kind.endswith("image") else "not an image"
        raise UnreadableImage(f"it is {kind}, {remedy}") from error
    except Exception as error:  # Pillow's decoders raise errors of many classes
        raise UnreadableImage(reason(error)) from error


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Turns pixels by the EXIF orientation of an image, even if other parts of it are damaged.

    `ImageOps.exif_transpose` rewrites the whole EXIF, and fails if a part of it is damaged.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the EXIF cannot be read at all
        return pixels
    return pixels.transpose(_TURNS[orientation]) if orientation in _TURNS else pixels


def _to_rgb(image: Image.Image, ranges: ValueRanges) -> Image.Image:
    if grey := _deep_grey(image):
        kind, values = grey
        low, high = ranges.get(kind) or _range(kind, values.min(), values.max())
        scaled = (values.astype(np.float64) - low) / (high - low or 1) * 255
        clear = values == image.info.get("transparency", -1)
        image = Image.fromarray(np.clip(np.where(clear, 255, scaled), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if not is_all_transparent(image):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def is_all_transparent(image: Image.Image) -> bool:
    """Whether no pixel is visible: alpha is unused then, or holds something else."""
    return image.has_transparency_data and not image.convert("RGBA").getchannel("A").getbbox()


def _deep_grey(image: Image.Image) -> tuple[str, np.ndarray] | None:
    """Number type and values of a grey image of more than 8 bits; None for other images."""
    if not image.mode.startswith(("I", "F")):
        return None
    values = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise UnreadableImage("it holds NaN or infinite values")
        return "float", values
    if getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        return "signed", values
    # Pillow has no unsigned integers of 32 bits, and reads them as signed.
    return "unsigned", values.view(np.uint32) if values.dtype == np.int32 else values


def _range(kind: str, low: float, high: float) -> list[float]:
    if kind == "unsigned":
        return [0.0, 2.0 ** max(8, int(high).bit_length()) - 1]
    return [float(low), float(high)]


def read_in_order(
    paths: Sequence[Path], size: int, ranges: ValueRanges | None = None
) -> Iterator[np.ndarray | str]:
    """`try_read` of many images on several threads, only a few of them ahead."""
    one = functools.partial(try_read, size=size, ranges=ranges)
    ahead = _AHEAD * (os.cpu_count() or 1)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(paths), ahead):
            yield from threads.map(one, paths[start : start + ahead])


def read_all(
    paths: Sequence[Path], images: np.ndarray, name: str, ranges: ValueRanges | None = None
) -> dict[int, str]:
    """Decodes images on several threads.

    Args:
      paths: the files.
      images: output, filled with zeros, uint8 `[N,size,size,3]`; may be a memory map.
      name: name of the set for the progress bar; empty for no bar.
      ranges: see `read`.

    Returns:
      Reasons by position for the images that cannot be read; these stay black.
    """
    unreadable: dict[int, str] = {}
    with Progress(f"decode {name}", len(paths)) if name else contextlib.nullcontext() as progress:
        for position, found in enumerate(read_in_order(paths, images.shape[1], ranges)):
            if isinstance(found, str):
                unreadable[position] = found
            else:
                images[position] = found
            if progress:
                progress.update(position + 1, {})
    return unreadable
