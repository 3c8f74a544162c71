"""Small trees of image files, laid out as people lay out theirs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# The shared classes of Office-31's three domains, by their real number.
OFFICE_CLASSES = tuple(f"class_{number:02d}" for number in range(31))


def write_image(path: Path, label: int, seed: int, brightness: int = 0) -> None:
    """A coloured square whose place and colour say the class; domains differ in brightness."""
    generator = np.random.default_rng((label, seed))
    pixels = generator.integers(0, 60, (48, 40, 3)) + brightness
    row, column = 8 * (label % 5), 6 * (label // 5 % 5)
    pixels[row : row + 12, column : column + 12, label % 3] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_domain(
    folder: Path, classes: Sequence[str], each: int, seed: int = 0, brightness: int = 0
) -> Path:
    """`folder/<class>/<number>.jpg`, `each` images of every class."""
    for label, name in enumerate(classes):
        for number in range(each):
            path = folder / name / f"{number:03d}.jpg"
            write_image(path, label, 1000 * seed + number, brightness)
    return folder


def write_office(root: Path, classes: Sequence[str] = OFFICE_CLASSES, each: int = 2) -> Path:
    """Office-31's layout: one domain with `images/`, two without."""
    for number, name in enumerate(("amazon/images", "dslr", "webcam")):
        write_domain(root / name, classes, each, seed=number, brightness=40 * number)
    return root
