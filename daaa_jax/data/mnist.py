"""MNIST from its four idx files or a prepared TFDS copy, padded to 32x32 RGB."""

import gzip
import re
from pathlib import Path

import numpy as np

from daaa_jax.data import image_files
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError, counted, reading
from daaa_jax.runtime import file_kind

_PREFIX = {"train": "train", "test": "t10k"}


def load(folder: Path, split: str) -> LabelledImages:
    """Reads one split from idx files, gzipped or not.

    Args:
      folder: the four files are in it or its subfolders; their names may have other separators,
        other suffixes or the number of a copy. Of several files for one part, those that can be
        read must have the same content.
      split: `train` or `test`.

    Returns:
      Images, uint8 `[N,32,32,3]`, and labels.

    Raises:
      UserError: if a file is missing, its content does not match its name, or two files differ.
    """
    _, images = _read(folder, split, "images", dimensions=3)
    path, labels = _read(folder, split, "labels", dimensions=1)
    if len(images) != len(labels):
        raise UserError(f"{path} holds {counted(len(labels), 'label')}, expected {len(images)}")
    check_labels(labels, path)
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
    copy = versions[-1].parent
    builder = tfds.builder_from_directory(str(copy))
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(f"{copy} is a {file_format} copy, which needs TensorFlow to read: {how}")
    with reading(f"{copy}, split {split},", how):
        rows = builder.as_data_source(split=split)
        images = np.stack([row["image"][..., 0] for row in rows])
        labels = np.array([row["label"] for row in rows], np.int32)
    check_labels(labels, copy)
    return LabelledImages(pad(images), labels)


def pad(images: np.ndarray) -> np.ndarray:
    """Pads grey digits, uint8 `[N,28,28]`, with zeros to RGB images, uint8 `[N,32,32,3]`."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=-1)


def check_labels(labels: np.ndarray, path: Path) -> None:
    """Checks that labels are digits.

    Raises:
      UserError: names the first label that is not.
    """
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        what = f"label {labels[wrong[0]]} of image {wrong[0]} is outside 0..9"
        raise UserError(f"{path}: {what}: is it a file of another dataset?")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes, gzipped or not, whatever its name.

    Args:
      path: the file.
      dimensions: 3 for images, 1 for labels.

    Raises:
      UserError: if it cannot be read, or its header or length is not as expected.
    """
    with reading(path):
        content = path.read_bytes()
        for _ in range(2):  # some servers pack a packed file again
            if content.startswith(b"\x1f\x8b"):
                content = gzip.decompress(content)
    header = 4 + 4 * dimensions
    rest = len(content) - header
    magic = bytes([0, 0, 8, dimensions])
    if not content.startswith(magic):
        kind = file_kind.describe(content)
        raise UserError(
            f"{path} is {kind and f'{kind}, '}not an idx file of "
            f"{'images' if dimensions == 3 else 'labels'} (it begins with "
            f"{content[:4].hex() or 'nothing'}, expected {magic.hex()}): replace it with MNIST's"
        )
    if rest < 0:
        raise UserError(f"{path} is cut short: {len(content)} bytes: download it again")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if dimensions == 3 and shape[1:] != (28, 28):
        raise UserError(
            f"{path} holds images of {shape[1]}x{shape[2]}, expected 28x28: replace it with MNIST's"
        )
    if rest != np.prod(shape, dtype=np.int64):
        what = f"{rest} bytes after the header, which declares {' x '.join(map(str, shape))}"
        raise UserError(f"{path} is cut short or too long: {what}: download it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read(folder: Path, split: str, part: str, dimensions: int) -> tuple[Path, np.ndarray]:
    """Path and content of the images or labels of a split."""
    # Also `train-images.idx3-ubyte`, `train-images-idx3-ubyte (1).gz`, `Copy of test-images.gz`.
    pattern = re.compile(rf"(.*\s)?({split}|{_PREFIX[split]})[-_. ]?{part}", re.IGNORECASE)
    found, errors = [], []
    for path in image_files.files_in_any_case(folder):
        if pattern.match(path.name):
            try:
                found.append((path, read_idx(path, dimensions)))
            except UserError as error:
                errors.append(error)
    if not found:
        path = folder / f"{_PREFIX[split]}-{part}-idx{dimensions}-ubyte"
        missing = f"{path} (or {path.name}.gz) is missing: put MNIST's four idx files there"
        raise errors[0] if errors else UserError(missing)
    for path, array in found[1:]:
        if not np.array_equal(array, found[0][1]):
            raise UserError(f"{found[0][0]} and {path} differ: remove the one that is not MNIST's")
    return found[0]
