"""A small copy of MNIST and MNIST-M in their published layouts, for tests of reading them."""

import bz2
import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from configs import digits
from daaa_jax.data import load_task
from daaa_jax.errors import UserError

COUNTS = {"mnist_train": 40, "mnist_test": 20, "mnist_m_train": 30, "mnist_m_test": 10}
PREFIX = {"train": "train", "test": "t10k"}


def write(root: Path) -> Path:
    """A small copy of both data sets in their published layouts; image i is filled with i."""
    (root / "mnist").mkdir(parents=True)
    for split, suffix in (("train", ".gz"), ("test", "")):
        count = COUNTS[f"mnist_{split}"]
        images = np.arange(count)[:, None, None] * np.ones((1, 28, 28))
        write_idx(root / "mnist" / f"{PREFIX[split]}-images-idx3-ubyte{suffix}", images)
        labels = np.arange(count) % 10
        write_idx(root / "mnist" / f"{PREFIX[split]}-labels-idx1-ubyte{suffix}", labels)
        folder = root / "mnist_m" / f"mnist_m_{split}"
        folder.mkdir(parents=True)
        lines = []
        for i in range(COUNTS[f"mnist_m_{split}"]):
            pixels = np.full((32, 32, 3), i, np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:08d}.png")
            lines.append(f"{i:08d}.png {i % 10}\n")
        (root / "mnist_m" / f"mnist_m_{split}_labels.txt").write_text("".join(lines))
    return root


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def archive(root: Path, name: str = "mnist_m.tar.gz", mode: str = "w:gz") -> Path:
    """Packs the folder as the published archive is, and removes it."""
    path = root / "mnist_m" / name
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for file in sorted((root / "mnist_m").rglob("*")):
            if file.is_file() and file != path:
                tar.add(file, f"mnist_m/{file.relative_to(root / 'mnist_m')}")
                file.unlink()
    return path


def settings(root: Path, **changes):
    data = digits.get_config("mnist2mnistm").data
    data.dir = str(root)
    data.expected_counts.update(COUNTS)
    data.update(changes)
    return data


def load_error(data) -> str:
    with pytest.raises(UserError) as caught:
        load_task(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def usps_digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Values in [0, 1], `[count,16,16]`, the left half of image i darker than the right; labels."""
    images = np.linspace(0, 0.5, count)[:, None, None] * np.ones((1, 16, 16))
    images[:, :, 8:] += 0.5
    return images, np.arange(count) % 10


def write_usps(folder: Path, counts: dict[str, int]) -> Path:
    """USPS in LIBSVM's format."""
    folder.mkdir(parents=True)
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        images, labels = usps_digits(counts[split])
        lines = []
        for image, label in zip(2 * images.reshape(len(images), -1) - 1, labels, strict=True):
            fields = [f"{i}:{x:.6f}" for i, x in enumerate(image, start=1)]
            lines.append(" ".join([str(label + 1), *fields]))
        (folder / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))
    return folder


def write_svhn(folder: Path, counts: dict[str, int]) -> Path:
    """SVHN's cropped digits; image i has value i + 2 row + column, and class 10 is the digit 0."""
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:32, :32]
    for split, count in counts.items():
        pixels = (2 * rows + columns)[..., None, None] + np.zeros((3, 1)) + np.arange(count)
        labels = np.where(np.arange(count) % 10, np.arange(count) % 10, 10)[:, None]
        content = {"X": pixels.astype(np.uint8), "y": labels.astype(np.uint8)}
        savemat(folder / f"{split}_32x32.mat", content)
    return folder
