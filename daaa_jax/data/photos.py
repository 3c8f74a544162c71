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
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from daaa_jax.errors import reason
from daaa_jax.runtime import file_kind
from daaa_jax.runtime.progress import Progress

# Values shown as black and as white, by number type: unsigned, signed, float.
ValueRanges = Mapping[str, Sequence[float]]

Image.init()
# What Pillow recognises by the first bytes and decodes itself, without another program. Not FITS,
# whose sign and scale it ignores, nor IM, IMT, IPTC and MCIDAS, which other files may look like.
_FORMATS = sorted(Image.OPEN.keys() & {
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO",
    "JPEG", "JPEG2000", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER",
    "SUN", "TIFF", "WEBP", "XBM", "XPM",
})  # fmt: skip
_WITHOUT_SIGNATURE = dict.fromkeys((".tga", ".icb", ".vda", ".vst"), ("TGA",)) | {".dib": ("DIB",)}
# Camera files: Pillow would read the small preview in some of them.
_RAW = {
    ".3fr", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq",
    ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl",
    ".sr2", ".srf", ".srw", ".x3f",
}  # fmt: skip
SUFFIXES = _RAW | {".heic", ".heif", ".hif", ".avif", ".jxl", ".svg", ".psb", *_WITHOUT_SIGNATURE}
SUFFIXES |= {end for end, name in Image.registered_extensions().items() if name in _FORMATS}
# Tags of TIFF.
_ORIENTATION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SAMPLE_FORMAT = 274, 262, 277, 284, 339
_DNG_VERSION = 50706
# Pillow's own reader takes 16-bit values in separate planes for 8-bit ones.
TiffImagePlugin.READ_LIBTIFF = True
_LARGE = 25_000_000  # pixels from which images are decoded one at a time, reduced where possible
_one_large = threading.Lock()
_AHEAD = 8  # images decoded ahead of their use, per thread
# Pillow warns of images above half of its limit of 179 million pixels, which are accepted.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Metadata of more than one megabyte is common, for example of editors that store their history.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28


class UnreadableImage(Exception):
    """An image file that cannot be decoded; the message gives the reason."""


def is_in_icloud(name: str) -> bool:
    """Whether a file stands for an image that is not downloaded, as `.a.jpg.icloud` does."""
    inner = Path(name.removesuffix(".icloud"))
    return name.startswith(".") and inner.name != name and inner.suffix.lower() in SUFFIXES


def starts_as_image(path: Path) -> bool:
    """Whether a file's first bytes are those of an image, or the file cannot be opened."""
    first = b""
    try:
        first = file_kind.head(path)
        if file_kind.describe(first).endswith("image"):
            return True
        with Image.open(path, formats=_FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # Pillow recognised it, and raises errors of many classes; or no permission
        return not first or b"\0" in first  # a text may also start with `BM` or `P3`


def read(path: Path, size: int, ranges: ValueRanges | None = None) -> np.ndarray:
    """Decodes an image and resizes it to a square, ignoring the aspect ratio.

    Applies the EXIF orientation, makes transparent pixels white, converts grey, palette, CMYK and
    deeper images to 8-bit RGB, and takes the first frame of an animation. An image that is
    transparent everywhere is read as opaque. The aspect ratio was commonly ignored at the time of
    the paper.

    Args:
      path: the file.
      size: height and width of the result; 0 for those of the image.
      ranges: of its domain, from `value_ranges`; the range of the image itself for a number type
        that is not among them.

    Returns:
      uint8 `[size,size,3]`, or `[H,W,3]`.

    Raises:
      UnreadableImage: if it is not an image, is damaged or truncated, claims over 179 million
        pixels, or holds NaN or infinite values.
    """
    with opened(path, size) as image:
        rgb = _upright(_to_rgb(image, ranges or {}), image)
        return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR) if size else rgb)


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
            if deep := _deep(image):
                return deep[:3]
        return None

    found: dict[str, list[float]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for kind, *extreme in filter(None, threads.map(extremes, paths)):
            found.setdefault(kind, []).extend(extreme)
    return {kind: _range(kind, min(found[kind]), max(found[kind])) for kind in sorted(found)}


@contextlib.contextmanager
def opened(path: Path, size: int = 0) -> Iterator[ImageFile.ImageFile]:
    """Opens an image; errors within the block are of the image, and raise `UnreadableImage`.

    With a size, JPEGs of many pixels are decoded at a reduced one, at least four times as large.
    """
    try:
        if is_in_icloud(path.name):
            raise UnreadableImage("not downloaded from iCloud")
        if (suffix := path.suffix.lower()) in _RAW:
            raise UnreadableImage(f"a camera's raw file ({suffix}): convert it to JPEG or PNG")
        if path.exists() and not path.is_file():
            if path.is_dir():
                os.listdir(path)  # or the reason why not
            raise UnreadableImage("not a file")
        with Image.open(path, formats=(*_FORMATS, *_WITHOUT_SIGNATURE.get(suffix, ()))) as image:
            if _DNG_VERSION in getattr(image, "tag_v2", ()):
                raise UnreadableImage("a camera's raw file (DNG): convert it to JPEG or PNG")
            if (bands := _tag(image, _SAMPLES)) > 1 == len(image.getbands()):
                raise UnreadableImage(f"it has {bands} bands and no colours: save three as PNG")
            if image.format == "TIFF" and image.mode in ("I", "F"):
                # libtiff has put the bytes in the machine's order, which Pillow overlooks.
                _read_as(image, _decoding(image)[0].replace("B", ""))
            large = image.width * image.height > _LARGE
            if large and size:
                image.draft(image.mode, (4 * size, 4 * size))
                # A progressive JPEG is large in memory, whatever size is made of it.
                large = "progressive" in image.info or image.width * image.height > _LARGE
            with _one_large if large else contextlib.nullcontext():
                yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        kind = file_kind.describe(file_kind.head(path)) or "of an unknown kind"
        problem = "not an image"
        if kind.endswith("image"):
            problem = "damaged, or of a form that this Pillow cannot decode: convert it to PNG"
        raise UnreadableImage(f"it is {kind}, {problem}") from error
    except Exception as error:  # Pillow's decoders raise errors of many classes
        why = reason(error).replace("decoder error -2", "damaged or cut short")
        raise UnreadableImage(why) from error


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Turns pixels by the EXIF orientation of an image, even if other parts of it are damaged.

    `ImageOps.exif_transpose` rewrites the whole EXIF, and fails if a part of it is damaged; pixels
    are given the orientation alone.
    """
    with contextlib.suppress(Exception):  # the EXIF cannot be read at all
        orientation = image.getexif().get(_ORIENTATION)
        pixels.info.clear()
        pixels.getexif()[_ORIENTATION] = orientation
        ImageOps.exif_transpose(pixels, in_place=True)
    return pixels


def _to_rgb(opened: ImageFile.ImageFile, ranges: ValueRanges) -> Image.Image:
    image: Image.Image = opened
    is_coarse = _has_upper_half_alone(opened)
    if deep := _deep(opened):
        kind, low, high, values = deep
        black, white = ranges.get(kind) or _range(kind, low, high)
        if is_coarse and values.ndim == 3 and max(high, white) < 2**15:
            raise UnreadableImage("dark 16-bit colour, planar or premultiplied: save it as PNG")
        pixels = _scaled(values, black, white)
        if _tag(opened, _PHOTOMETRIC) == 0:  # zero is white
            pixels = 255 - pixels
        if (clear := opened.info.get("transparency")) is not None:
            pixels[(np.atleast_3d(values) == clear).all(-1)] = 255
        mode = opened.mode if values.ndim == 3 else "L"
        image = Image.frombytes(mode, opened.size, pixels.tobytes())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if not is_all_transparent(image):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 of the shape of `values`: 0 at `low`, 255 at `high`."""

    def scale(part: np.ndarray) -> np.ndarray:
        return np.clip((part - np.float64(low)) / (high - low or 1) * 255, 0, 255).astype(np.uint8)

    table = scale(np.arange(2**16)) if values.itemsize == 2 else None
    # In strips, as the numbers between take 8 bytes each.
    strips = np.array_split(values, 1 + len(values) // 64)
    return np.concatenate([scale(part) if table is None else table[part] for part in strips])


def is_all_transparent(image: Image.Image) -> bool:
    """Whether no pixel is visible: alpha is unused then, or holds something else."""
    return image.has_transparency_data and not image.convert("RGBA").getchannel("A").getbbox()


def _tag(image: Image.Image, number: int) -> int:
    """A tag of a TIFF; 1, the default of those that are used here, for other images."""
    value = getattr(image, "tag_v2", {}).get(number, 1)
    return value[0] if isinstance(value, tuple) else value


def _decoding(image: ImageFile.ImageFile) -> tuple[Any, ...]:
    """Arguments of a decoder of PNG or TIFF; first how pixels are stored, such as `RGB;16B`."""
    arguments = image.tile[0].args
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _read_as(image: ImageFile.ImageFile, raw_mode: str) -> None:
    image.tile = [image.tile[0]._replace(args=(raw_mode, *_decoding(image)[1:]))]


def _deep(image: ImageFile.ImageFile) -> tuple[str, float, float, np.ndarray] | None:
    """Number type, extreme values, and values of an image of more than 8 bits; None for others.

    Values are `[H,W]` or, with colours, `[H,W,C]`; alpha is left out of the extreme ones.
    """
    is_signed = _tag(image, _SAMPLE_FORMAT) == 2
    raw = _decoding(image)[0] if image.format in ("PNG", "TIFF") else ""
    if ";16" in raw and not raw.startswith("I"):
        is_coarse = _has_upper_half_alone(image)
        upper = np.asarray(image)  # all that Pillow reads
        highest = upper[..., : 4 if image.mode == "CMYK" else 3].max()
        suffices = is_coarse or (highest > 127 and "transparency" not in image.info)
        lower = upper if suffices else _lower_bytes(image, raw)
        return "unsigned", 0, 256.0 * highest, upper.astype(np.uint16) << 8 | lower
    if not image.mode.startswith(("I", "F")) and not (image.mode == "L" and is_signed):
        return None
    kind, values = "signed" if is_signed else "unsigned", np.asarray(image)
    if image.mode == "L":
        values = values.view(np.int8)
    elif image.mode == "F":
        kind = "float"
        if not np.isfinite(values).all():
            raise UnreadableImage("it holds NaN or infinite values")
    elif not is_signed and values.dtype == np.int32:  # Pillow has no unsigned ones of 32 bits
        values = values.view(np.uint32)
    return kind, float(values.min()), float(values.max()), values


def _has_upper_half_alone(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow cannot read the lower bytes, if this is 16-bit colour."""
    return image.format == "TIFF" and (_tag(image, _PLANAR) == 2 or "a" in _decoding(image)[0])


def _lower_bytes(image: ImageFile.ImageFile, raw: str) -> np.ndarray:
    """The lower bytes of 16-bit colour, `[H,W,C]`."""
    with Image.open(image.filename, formats=_FORMATS) as again:
        if raw == "LA;16B":
            _read_as(again, "RGBA")
            return np.asarray(again)[..., [1, 1, 1, 3]]
        _read_as(again, raw[:-1] + ("L" if raw.endswith("B") else "B"))
        return np.asarray(again)


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
