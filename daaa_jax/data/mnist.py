"""MNIST from its four idx files or a prepared TFDS copy, padded to 32x32 RGB."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError

_PREFIX = {"train": "train", "test": "t10k"}
_WHERE = "put MNIST's four idx files there (train-images-idx3-ubyte, t10k-labels-idx1-ubyte …)"


def load(folder: Path, split: str) -> LabelledImages:
    """Reads one split from idx files, gzipped or not.

    Args:
      folder: folder of the four files.
      split: `train` or `test`.

    Returns:
      Images, uint8 `[N,32,32,3]`, and labels.

    Raises:
      UserError: if a file is missing, or its content does not match its name.
    """
    images = read_idx(_find(folder, f"{_PREFIX[split]}-images-idx3-ubyte"), dimensions=3)
    labels_path = _find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte")
    labels = read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise UserError(f"{labels_path} holds {len(labels)} labels for {len(images)} images")
    check_labels(labels, labels_path)
    return LabelledImages(pad(images), labels.astype(np.int32))


def load_tfds(folder: Path, split: str) -> LabelledImages:
    """Reads one split of `mnist` from a TFDS copy in array_record, without TensorFlow.

    Args:
      folder: TFDS's `data_dir`, which holds `mnist/3.0.1/`.
      split: `train` or `test`.

    Raises:
      UserError: if there is no such copy, or it is damaged or in another file format.
    """
    import tensorflow_datasets as tfds

    how = (
        f"prepare one with tfds.builder('mnist', data_dir={str(folder)!r}, "
        f"file_format='array_record').download_and_prepare()"
    )
    versions = sorted((folder / "mnist").glob("*/dataset_info.json"))
    if not versions:
        raise UserError(f"{folder} holds no prepared copy of TFDS's mnist: {how}")
    builder = tfds.builder_from_directory(str(versions[-1].parent))
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(
            f"{versions[-1].parent} is a {file_format} copy, which needs TensorFlow to read: {how}"
        )
    try:
        rows = builder.as_data_source(split=split)
        images = np.stack([row["image"][..., 0] for row in rows])
        labels = np.array([row["label"] for row in rows], np.int32)
    except Exception as error:  # array_record and TFDS raise their own error classes
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{versions[-1].parent} is damaged or lacks the split {split} ({reason}): {how}"
        ) from error
    check_labels(labels, versions[-1].parent)
    return LabelledImages(pad(images), labels)


def pad(images: np.ndarray) -> np.ndarray:
    """Pads grey digits, uint8 `[N,28,28]`, with zeros to RGB images, uint8 `[N,32,32,3]`."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return np.repeat(padded[..., None], 3, axis=-1)


def check_labels(labels: np.ndarray, path: Path) -> None:
    """Checks that labels are digits.

    Raises:
      UserError: names the first label that is not.
    """
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        raise UserError(
            f"{path}: label {labels[wrong[0]]} of image {wrong[0]} is outside 0..9: "
            f"is it a file of another dataset?"
        )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes.

    Args:
      path: the file, gzipped if its name ends in `.gz`.
      dimensions: 3 for images, 1 for labels.

    Raises:
      UserError: if it cannot be read, or its header or length is not as expected.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from error
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if len(content) < header or content[:4] != magic:
        raise UserError(
            f"{path} is not an idx file of {'images' if dimensions == 3 else 'labels'}: it begins "
            f"with {content[:4].hex() or 'nothing'}, expected {magic.hex()}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if dimensions == 3 and shape[1:] != (28, 28):
        raise UserError(f"{path} holds images of {shape[1]}x{shape[2]}, expected 28x28")
    if len(content) - header != np.prod(shape, dtype=np.int64):
        raise UserError(
            f"{path} is cut short or too long: {len(content) - header} bytes after the header, "
            f"which declares {' x '.join(map(str, shape))}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    # Some distributions have a dot before idx: train-images.idx3-ubyte.
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx")):
        if (folder / candidate).is_file():
            return folder / candidate
    raise UserError(f"{folder / name} (or {name}.gz) is missing: {_WHERE}")
