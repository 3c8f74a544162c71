"""Packs the data of `gpu.sh` into files that are small enough to copy to a GPU machine.

    python -m benchmarks.gpu_data --data=DIR --out=DATA      from MNIST, MNIST-M and office10
    python -m benchmarks.gpu_data --out=DATA                 generated stand-ins, to test gpu.sh

`DIR` holds `mnist/`, `mnist_m/` and `office10/`. Writes `DATA/digits/` (25,000 training and 3,000
test images of MNIST, and the same of MNIST-M as lossless WebP in one archive) and
`DATA/office10/` (amazon, webcam and EfficientNet-Lite0's weights), each below 60 MiB.
"""

import argparse
import gzip
import io
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from daaa_jax.data import mnist, mnist5k, mnist_m, mnist_m_recipe
from daaa_jax.data.types import LabelledImages
from daaa_jax.models import published_weights

COUNTS = {"train": 25_000, "test": 3_000}
LARGEST = 60  # MiB of each folder
GENERATED = {"train": 300, "test": 100}
_PREFIX = {"train": "train", "test": "t10k"}
_PHOTOS = 12  # per class of the generated office10


def write_mnist(folder: Path, splits: dict[str, LabelledImages]) -> None:
    """Writes MNIST's four idx files, gzipped, from padded RGB digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, data in splits.items():
        for part, number, array in (
            ("images", 3, np.asarray(data.images)[:, 2:30, 2:30, 0]),
            ("labels", 1, data.labels),
        ):
            header = bytes([0, 0, 8, number]) + np.array(array.shape, ">u4").tobytes()
            content = gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)
            (folder / f"{_PREFIX[split]}-{part}-idx{number}-ubyte.gz").write_bytes(content)


def write_mnist_m(path: Path, splits: dict[str, LabelledImages]) -> None:
    """Writes MNIST-M as one archive of lossless WebP files and lists of labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(f"mnist_m/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        for split, data in splits.items():
            names = [f"{number:08d}.webp" for number in range(len(data.labels))]
            lines = (f"{name} {y}\n" for name, y in zip(names, data.labels, strict=True))
            add(f"mnist_m_{split}_labels.txt", "".join(lines).encode())
            for name, image in zip(names, np.asarray(data.images), strict=True):
                content = io.BytesIO()
                Image.fromarray(image).save(content, "webp", lossless=True)
                add(f"mnist_m_{split}/{name}", content.getvalue())


def first(data: LabelledImages, count: int) -> LabelledImages:
    """The first images; MNIST-M follows the order of MNIST."""
    return LabelledImages(data.images[:count], data.labels[:count])


def generated_digits() -> tuple[dict[str, LabelledImages], dict[str, LabelledImages]]:
    """Random blocks in place of digits, and the same blended with photos."""
    draw, grey, colour = np.random.default_rng(0), {}, {}
    for split, count in GENERATED.items():
        labels = np.arange(count, dtype=np.int32) % 10
        digits = 255 * draw.integers(0, 2, (count, 7, 7)).astype(np.uint8)
        padded = mnist.pad(digits.repeat(4, axis=1).repeat(4, axis=2))
        blended = mnist_m_recipe.blend(padded, mnist5k.photos(), draw)
        grey[split], colour[split] = (
            LabelledImages(images, labels) for images in (padded, blended)
        )
    return grey, colour


def generated_photos(folder: Path) -> None:
    """Random colours in place of photos, in office10's ten classes."""
    draw = np.random.default_rng(1)
    for domain in ("amazon", "webcam"):
        for number in range(10):
            place = folder / domain / f"class_{number}"
            place.mkdir(parents=True, exist_ok=True)
            for photo in range(_PHOTOS):
                colours = draw.integers(0, 256, (6, 6, 3), np.uint8)
                Image.fromarray(colours).resize((64, 64)).save(place / f"{photo}.png")


def main() -> None:
    """Writes both folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of mnist/, mnist_m/ and office10/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the packed data")
    options = parser.parse_args()
    digits, photos = options.out / "digits", options.out / "office10"
    if options.data:
        read = mnist_m.load(options.data / "mnist_m")
        grey = {s: first(mnist.load(options.data / "mnist", s), n) for s, n in COUNTS.items()}
        colour = {split: first(read[split], count) for split, count in COUNTS.items()}
        for domain in ("amazon", "webcam"):
            place = options.data / "office10" / domain
            shutil.copytree(place, photos / domain, dirs_exist_ok=True)
        shutil.copy(published_weights.find("efficientnet_lite0"), photos / "weights.pth")
    else:
        grey, colour = generated_digits()
        generated_photos(photos)
    write_mnist(digits / "mnist", grey)
    write_mnist_m(digits / "mnist_m" / "mnist_m.tar.gz", colour)
    for folder in (digits, photos):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
        print(f"{folder}: {size:.1f} MiB")
        if size > LARGEST:
            sys.exit(f"{folder} is larger than {LARGEST} MiB")


if __name__ == "__main__":
    main()
