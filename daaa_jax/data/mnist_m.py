"""MNIST-M in its common distribution: a folder of PNG files, or an archive of it."""

import codecs
import contextlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from daaa_jax.data import cache, image_files
from daaa_jax.data.mnist import check_labels
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError
from daaa_jax.runtime import file_kind

SPLITS = ("train", "test")
_SIDE = 32
_DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error)
_ARCHIVE = re.compile(r"mnist[-_ ]?m(?!_(train|test))", re.IGNORECASE)


def load(folder: Path) -> dict[str, LabelledImages]:
    """Reads both splits.

    Args:
      folder: it or its subfolders contain `mnist_m_train/`, `mnist_m_train_labels.txt` and the same
        for `test`, or `mnist_m.tar.gz`; the archive may have another suffix or compression.

    Returns:
      `train` and `test`: images, uint8 `[N,32,32,3]`, in the order of the label files.

    Raises:
      UserError: if a file is missing, unreadable or of another size, or a label is not a digit.
    """
    paths = image_files.files_in_any_case(folder)
    labels = _label_files(paths)
    if len(labels) == len(SPLITS):
        return {
            split: _in_order(split, path.parent, _from_folder(path, split))
            for split, path in labels.items()
        }
    if archive := _archive(paths):
        arrays = cache.get(
            cache.identity(archive, "mnist_m-1"),
            [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")],
            lambda _: _decode_archive(archive),
        )
        return {
            split: LabelledImages(arrays[f"{split}_images"], arrays[f"{split}_labels"])
            for split in SPLITS
        }
    missing = next(split for split in SPLITS if split not in labels)
    raise UserError(
        f"{folder} holds neither mnist_m_{missing}_labels.txt nor mnist_m.tar.gz: put MNIST-M "
        f"there, or set data.photos_dir to a folder of photos to make it from MNIST"
    )


def _label_files(paths: list[Path]) -> dict[str, Path]:
    """Label files by split; of copies, which must be the same, the one nearest to the folder."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        copies = [path for path in paths if path.name == f"mnist_m_{split}_labels.txt"]
        for path in sorted(copies, key=lambda path: len(path.parts)):
            nearest = found.setdefault(split, path)
            if _content(path) != _content(nearest):
                raise UserError(
                    f"{nearest} and {path} differ: remove the one that is not MNIST-M's"
                )
    return found


def _archive(paths: list[Path]) -> Path | None:
    """The file named as the archive, and preferably a tar archive; the nearest to the folder."""
    return min(
        (path for path in paths if _ARCHIVE.search(path.name)),
        key=lambda path: (not _is_tar(path), len(path.parts), len(path.name), path),
        default=None,
    )


def _is_tar(path: Path) -> bool:
    """Whether a file is a tar archive with content, compressed or not, whatever its name."""
    with contextlib.suppress(*_DAMAGED), tarfile.open(path) as tar:
        return tar.next() is not None
    return False


def _decode_archive(archive: Path) -> dict[str, np.ndarray]:
    found: dict[str, dict[str, bytes | np.ndarray]] = {split: {} for split in SPLITS}
    for name, content in _members(archive):
        split = "train" if "mnist_m_train" in name else "test"
        file = Path(name).name
        where = f"{archive}: {name}"
        found[split][file] = content if file.endswith(".txt") else _decode(content, where)
    arrays: dict[str, np.ndarray] = {}
    for split in SPLITS:
        data = _in_order(split, archive, found[split])
        arrays |= {f"{split}_images": data.images[:], f"{split}_labels": data.labels}
    return arrays


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents, in one pass: seeking in a gzipped archive decompresses it again."""
    try:
        kind = file_kind.describe_file(archive)
        if "tar archive" not in kind and not _is_tar(archive):
            raise UserError(
                f"{archive} is {kind and f'{kind}, '}not a complete tar archive of MNIST-M: "
                f"download it again, or put its content there"
            )
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                wanted = member.isfile() and _is_part(member.name)
                if wanted and (file := tar.extractfile(member)):
                    yield member.name, file.read()
    except _DAMAGED as error:
        raise UserError(
            f"{archive} cannot be read to its end ({error}): download it again"
        ) from error


def _is_part(name: str) -> bool:
    # Skips files that start with a dot, which some systems add.
    ours = re.fullmatch(r"[^.].*(\.png|_labels\.txt)", Path(name).name)
    return ours is not None and "mnist_m_" in name


def _from_folder(labels: Path, split: str) -> dict[str, bytes | np.ndarray]:
    found: dict[str, bytes | np.ndarray] = {labels.name: _content(labels)}
    # Skips files that start with a dot, which some systems add.
    for path in labels.parent.glob(f"**/mnist_m_{split}/**/[!.]*.png"):
        if path.name not in found:
            found[path.name] = _decode(_content(path), str(path))
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace it") from error


def _in_order(split: str, where: Path, found: dict[str, bytes | np.ndarray]) -> LabelledImages:
    """Arranges the images of a split in the order of its label file."""
    name = f"mnist_m_{split}_labels.txt"
    text = found.get(name)
    if not isinstance(text, bytes):
        raise UserError(f"{where} holds no {name} and may be truncated: download it again")
    files, labels = _parse_labels(text, where / name)
    missing = [file for file in files if file not in found]
    if missing:
        raise UserError(
            f"{where / name} lists {missing[0]}, which mnist_m_{split}/ does not hold "
            f"({len(missing)} of {len(files)} are missing)"
        )
    images = np.empty((len(files), _SIDE, _SIDE, 3), np.uint8)
    for row, file in enumerate(files):
        images[row] = found[file]
    return LabelledImages(images, labels)


def _parse_labels(content: bytes, path: Path) -> tuple[list[str], np.ndarray]:
    # Editors of Windows save UTF-16, and begin UTF-8 with a byte-order mark.
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    kind = file_kind.describe(content[: file_kind.HEAD])
    if not text.strip() or kind not in ("", file_kind.TEXT):
        raise UserError(f"{path} is {kind or 'blank'}, not a list of labels: download it again")
    files, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch("-?[0-9]{1,9}", words[1]):
            raise UserError(f"{path}, line {number}: {line[:80]!r}, expected `00000000.png 5`")
        files.append(words[0])
        labels.append(int(words[1]))
    array = np.array(labels, np.int32)
    check_labels(array, path)
    return files, array


def _decode(content: bytes, where: str) -> np.ndarray:
    try:
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = file_kind.describe(content[: file_kind.HEAD]) or "not an image"
        # For other files, Pillow's message contains the memory address of the buffer.
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise UserError(
            f"{where} is {kind} and cannot be decoded{reason}: download it again"
        ) from error
    if pixels.shape != (_SIDE, _SIDE, 3):
        raise UserError(
            f"{where} is {pixels.shape[1]}x{pixels.shape[0]} pixels, expected {_SIDE}x{_SIDE}"
        )
    return pixels
