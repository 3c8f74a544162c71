"""What a file is by its first bytes, whatever its name: for errors of files that are not as named.

A failed download leaves a web page or nothing, a Git clone leaves pointers, browsers and mirrors
pack and unpack.
"""

import contextlib
import re
import zlib
from pathlib import Path

from daaa_jax.runtime import files

HEAD = 1024  # bytes that suffice
TEXT = "a text file"
_KINDS = (
    (rb"\Z", "empty"),
    (rb"\0{4,}\Z", "filled with zeros"),
    (rb"version https?://(git-lfs|hawser)\.", "a Git LFS pointer (`git lfs pull` fetches it)"),
    (rb"\S*annex[/\\]objects", "a git-annex pointer (`git annex get` fetches it)"),
    (rb"\s*<(head|body|script|meta|title|(.*<)?(!doctype\s+)?html)\b", "an HTML page"),
    (rb"\s*<(.*<)?svg\b", "an SVG image"),
    (rb"\s*<[!?a-z]", "an XML document"),
    (rb"\s*[{[]\s*[\"{\[]", "a JSON document"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb"BZh[1-9]", "a bzip2 file"),
    (rb"\xfd7zXZ", "an xz file"),
    (rb".{257}ustar", "a tar archive"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive"),
    (rb"7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "a packed file (7-Zip, RAR or zstd)"),
    (rb"\x89PNG", "a PNG image"),
    (rb"\xff\xd8\xff", "a JPEG image"),
    (rb"RIFF.{4}WEBP", "a WebP image"),
    (rb".{4}ftyp.{,40}avi[fs]", "an AVIF image"),
    (rb".{4}ftyp(hei|hev|mif|msf)", "a HEIC image"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF image"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image"),
    (rb"8BPS", "a Photoshop image"),
    (rb"v/1\x01|#\?(RADIANCE|RGBE)", "an OpenEXR or Radiance image"),
    (rb".{128}DICM", "a DICOM image"),
    (rb"%PDF", "a PDF document"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"\x08\x01\x12", "a TensorFlow SavedModel"),
    (rb"\x08[\x03-\x0f][\x12\x3a\x42]", "an ONNX file"),
    (rb".{4}TFL3", "a TensorFlow Lite file"),
    (rb"[\x81-\x8f][\xa0-\xbf\xd9]", "a msgpack file, as Flax writes"),
    (rb"\x93NUMPY", "a NumPy array (.npy)"),
    (rb"\x80[\x02-\x05]", "a Python pickle"),
    (rb"\0\0\x08\x01", "an idx file of labels"),
    (rb"\0\0\x08\x03", "an idx file of images"),
    (rb"\0\0[\x08\x09\x0b-\x0e][\x01-\x08]", "an idx file of another type"),
    (rb"[\t\n\r -~]+\Z", TEXT),
)


def describe(first: bytes) -> str:
    """Names the kind of a file.

    Args:
      first: the first `HEAD` bytes or more, or all of a shorter file.

    Returns:
      A phrase that follows "is", such as `an HTML page` or `empty`; looks into a gzipped file. An
      empty string for an unknown kind.
    """
    kind = _kind(first)
    if kind == "a gzip file":
        with contextlib.suppress(zlib.error):
            inside = zlib.decompressobj(wbits=31).decompress(first, HEAD)
            if inside and _kind(inside):
                return f"{_kind(inside)}, gzipped"
    return kind


def head(path: Path) -> bytes:
    """The first `HEAD` bytes of a file; raises `OSError` if it cannot be read."""
    with path.open("rb") as file:
        return file.read(HEAD)


def _kind(first: bytes) -> str:
    # Without a byte-order mark, and UTF-16 as UTF-8.
    first = files.decoded(first[:HEAD]).encode(errors="surrogateescape")
    how = re.DOTALL | re.IGNORECASE
    return next((kind for pattern, kind in _KINDS if re.match(pattern, first, how)), "")
