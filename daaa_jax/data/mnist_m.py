"""MNIST-M in its common distribution: a folder of PNG files, or an archive of it."""

import contextlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from daaa_jax.data import cache, image_files
from daaa_jax.data.mnist import check_labels
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError, readable, reading
from daaa_jax.runtime import file_kind, files

SPLITS = ("train", "test")
_SIDE = 32
_ARCHIVE = re.compile(r"mnist[-_ ]?m(?!_(train|test))", re.IGNORECASE)
# Without the files that start with a dot, which some systems add.
_PART = re.compile(r"(.*/)?mnist_m_(train|test)(_labels\.txt|/(.*/)?[^./][^/]*\.(?:png|webp))")

Part = tuple[str, Path, bytes]  # split, path and content of a file of labels or an image


def load(folder: Path) -> dict[str, LabelledImages]:
    """Reads both splits.

    Args:
      folder: it or its subfolders contain `mnist_m_train/`, `mnist_m_train_labels.txt` and the same
        for `test`, or `mnist_m.tar.gz`; the archive may have another suffix or compression. Of
        copies, those nearest to the folder are read; those of label files must be the same.

    Returns:
      `train` and `test`: images, uint8 `[N,32,32,3]`, in the order of the label files.

    Raises:
      UserError: if a file is missing, unreadable or of another size, or a label is not a digit.
    """
    paths = sorted(image_files.files_in_any_case(folder), key=lambda path: len(path.parts))
    names = {path.name for path in paths}
    missing = [split for split in SPLITS if f"mnist_m_{split}_labels.txt" not in names]
    archives = [path for path in paths if _ARCHIVE.search(path.name)]
    if not missing:
        arrays: Mapping[str, np.ndarray] = _read(folder, _contents(paths))
    elif archives:
        archive = next(filter(_is_tar, archives), archives[0])
        keys = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
        name = cache.identity(archive, "mnist_m-1")
        arrays = cache.get(name, keys, lambda _: _read(archive, _members(archive)))
    else:
        raise UserError(
            f"{folder} holds neither mnist_m_{missing[0]}_labels.txt nor mnist_m.tar.gz: put "
            f"MNIST-M there, or set data.photos_dir to a folder of photos to make it from MNIST"
        )
    return {
        split: LabelledImages(arrays[f"{split}_images"], arrays[f"{split}_labels"])
        for split in SPLITS
    }


def _is_tar(path: Path) -> bool:
    """Whether a file is a tar archive with content, compressed or not, whatever its name."""
    damage = contextlib.suppress(tarfile.TarError, OSError, EOFError, zlib.error)
    with damage, tarfile.open(path) as tar:
        return tar.next() is not None
    return False


def _contents(paths: Iterable[Path]) -> Iterator[Part]:
    """The files of MNIST-M among others."""
    for path in paths:
        if part := _PART.fullmatch(path.as_posix()):
            with readable(path):
                content = path.read_bytes()
            yield part[2], path, content


def _members(archive: Path) -> Iterator[Part]:
    """The same for an archive, in one pass: seeking in a gzipped one decompresses it again."""
    if not _is_tar(archive):
        kind = file_kind.describe(file_kind.head(archive)) or "of an unknown kind"
        remedy = "download it again, or put its content there"
        raise UserError(f"{archive} is {kind}, not a complete tar archive of MNIST-M: {remedy}")
    with reading(archive), tarfile.open(archive, "r|*") as tar:
        for member in tar:
            part = _PART.fullmatch(member.name) if member.isfile() else None
            if part and (file := tar.extractfile(member)):
                yield part[2], archive / member.name, file.read()


def _read(origin: Path, contents: Iterable[Part]) -> dict[str, np.ndarray]:
    """Decodes the images and labels of both splits, in the order of the label files."""
    labels: dict[str, tuple[Path, bytes]] = {}
    images: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    for split, path, content in contents:
        if path.suffix != ".txt":
            images[split].setdefault(path.name, _decode(content, path))
        elif content != labels.setdefault(split, (path, content))[1]:
            raise UserError(
                f"{labels[split][0]} and {path} differ: remove the one that is not MNIST-M's"
            )
    arrays = {}
    for split in SPLITS:
        if split not in labels:
            lost = f"mnist_m_{split}_labels.txt"
            raise UserError(f"{origin} holds no {lost} and may be truncated: download it again")
        path, content = labels[split]
        names, arrays[f"{split}_labels"] = _parse_labels(content, path)
        if missing := [name for name in names if name not in images[split]]:
            raise UserError(
                f"{path} lists {missing[0]}, which mnist_m_{split}/ does not hold "
                f"({len(missing)} of {len(names)} are missing)"
            )
        arrays[f"{split}_images"] = np.stack([images[split][name] for name in names])
    return arrays


def _parse_labels(content: bytes, path: Path) -> tuple[list[str], np.ndarray]:
    text, kind = files.decoded(content), file_kind.describe(content)
    if not text.strip() or kind not in ("", file_kind.TEXT):
        raise UserError(f"{path} is {kind or 'blank'}, not a list of labels: download it again")
    names, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if found := re.fullmatch(r"\s*(\S+)\s+(-?[0-9]{1,9})\s*", line):
            names.append(found[1])
            labels.append(int(found[2]))
        elif line.strip():
            raise UserError(f"{path}, line {number}: {line[:80]!r}, expected `00000000.png 5`")
    array = np.array(labels, np.int32)
    check_labels(array, path)
    return names, array


def _decode(content: bytes, path: Path) -> np.ndarray:
    with reading(path):
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError as error:  # it would name the buffer, by its memory address
            kind = file_kind.describe(content) or "not an image"
            raise UserError(f"{path} is {kind} and cannot be decoded: download it again") from error
        pixels = np.asarray(image.convert("RGB"))
    if image.size != (_SIDE, _SIDE):
        raise UserError(f"{path} is {image.width}x{image.height} pixels, expected {_SIDE}x{_SIDE}")
    return pixels
