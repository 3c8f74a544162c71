"""MNIST-M in its common distribution: a folder of PNG files, or an archive of it."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from daaa_jax.data import cache
from daaa_jax.data.mnist import check_labels
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError

SPLITS = ("train", "test")
_SIDE = 32


def load(folder: Path) -> dict[str, LabelledImages]:
    """Reads both splits.

    Args:
      folder: contains `mnist_m_train/`, `mnist_m_train_labels.txt` and the same for `test`, or
        `mnist_m.tar.gz`.

    Returns:
      `train` and `test`: images, uint8 `[N,32,32,3]`, in the order of the label files.

    Raises:
      UserError: if a file is missing, unreadable or of another size, or a label is not a digit.
    """
    archive = folder / "mnist_m.tar.gz"
    if (folder / "mnist_m_train_labels.txt").is_file():
        return {split: _in_order(split, folder, _from_folder(folder, split)) for split in SPLITS}
    if archive.is_file():
        arrays = cache.get(
            cache.identity(archive, "mnist_m-1"),
            [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")],
            lambda _: _decode_archive(archive),
        )
        return {
            split: LabelledImages(arrays[f"{split}_images"], arrays[f"{split}_labels"])
            for split in SPLITS
        }
    raise UserError(
        f"{folder} holds neither mnist_m_train_labels.txt nor mnist_m.tar.gz: put MNIST-M there, "
        f"or set data.photos_dir to a folder of photos to make it from MNIST"
    )


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
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                wanted = member.isfile() and _is_part(member.name)
                if wanted and (file := tar.extractfile(member)):
                    yield member.name, file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive} cannot be read to its end ({error}): fetch it again") from error


def _is_part(name: str) -> bool:
    return "mnist_m_" in name and not Path(name).name.startswith(".")


def _from_folder(folder: Path, split: str) -> dict[str, bytes | np.ndarray]:
    labels = folder / f"mnist_m_{split}_labels.txt"
    if not labels.is_file():
        raise UserError(f"{labels} is missing")
    found: dict[str, bytes | np.ndarray] = {labels.name: labels.read_bytes()}
    # Skips files that start with a dot, which some systems add.
    for path in (folder / f"mnist_m_{split}").glob("[!.]*.png"):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): replace it") from error
        found[path.name] = _decode(content, str(path))
    return found


def _in_order(split: str, where: Path, found: dict[str, bytes | np.ndarray]) -> LabelledImages:
    """Arranges the images of a split in the order of its label file."""
    name = f"mnist_m_{split}_labels.txt"
    text = found.get(name)
    if not isinstance(text, bytes):
        raise UserError(f"{where} holds no {name} and may be truncated: fetch it again")
    files, labels = _parse_labels(text.decode(errors="replace"), where / name)
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


def _parse_labels(text: str, path: Path) -> tuple[list[str], np.ndarray]:
    files, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch("-?[0-9]{1,9}", words[1]):
            raise UserError(f"{path}, line {number}: {line!r}, expected `00000000.png 5`")
        files.append(words[0])
        labels.append(int(words[1]))
    array = np.array(labels, np.int32)
    check_labels(array, path)
    return files, array


def _decode(content: bytes, where: str) -> np.ndarray:
    try:
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # For other files, Pillow's message contains the memory address of the buffer.
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where} cannot be read as a PNG ({reason}): fetch it again") from error
    if pixels.shape != (_SIDE, _SIDE, 3):
        raise UserError(
            f"{where} is {pixels.shape[1]}x{pixels.shape[0]} pixels, expected {_SIDE}x{_SIDE}"
        )
    return pixels
