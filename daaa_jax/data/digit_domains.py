"""Tasks between two domains of digits: MNIST, MNIST-M, USPS and SVHN, read from their files."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from daaa_jax.data import (
    folders,
    image_files,
    mnist,
    mnist_m,
    mnist_m_recipe,
    photos,
    randomness,
    svhn,
    usps,
)
from daaa_jax.data.types import LabelledImages, MeasuredData, Task, UnlabelledImages
from daaa_jax.errors import UserError, counted
from daaa_jax.runtime.files import expanded

# Source and target, which are folders in `data.dir`, by `data.name`.
TASKS = {
    "mnist2mnistm": ("mnist", "mnist_m"),
    "mnist2usps": ("mnist", "usps"),
    "usps2mnist": ("usps", "mnist"),
    "svhn2mnist": ("svhn", "mnist"),
}
_READERS = {"mnist": mnist.load, "usps": usps.load, "svhn": svhn.load}


def load(settings: ConfigDict) -> Task:
    """Labelled digits of one domain, and those of another without their training labels.

    Args:
      settings: `config.data`; `name`, `dir`, `tfds_dir` (of MNIST), `photos_dir` (for MNIST-M),
        `seed`, `development_size`, `limit` and `expected_counts` are read.

    Raises:
      UserError: if a file is missing or not as expected, or a count is not in `expected_counts`.
    """
    names = TASKS[settings.name]
    # No folder is needed for MNIST from TFDS with MNIST-M made from photos.
    if not settings.dir and not (settings.tfds_dir and settings.photos_dir):
        raise UserError(
            "data.dir is not set: set --config.data.dir=DIR to the folder that holds "
            + " and ".join(f"{name}/" for name in names)
        )
    source = _read(names[0], settings)
    if settings.photos_dir and names[1] == "mnist_m":
        target = _blended(source, settings)
    else:
        target = _read(names[1], settings)

    generator = randomness.generator(settings.seed, "order")
    if settings.development_size:
        rows = _development_rows(source["train"], target["train"], settings)
        source, target = (_divided(splits["train"], rows) for splits in (source, target))
    # MNIST-M has the digits of MNIST in the same order, which training must not exploit.
    source_train = _shuffled(source["train"], generator, settings.limit)
    target_train = _shuffled(target["train"], generator, settings.limit)
    return Task(
        source_name=names[0],
        target_name=names[1],
        class_names=tuple(str(digit) for digit in range(10)),
        source_train=source_train,
        target_train=UnlabelledImages(target_train.images),
        evaluation=MeasuredData(
            source_test=_shuffled(source["test"], generator, settings.limit),
            target_test=_shuffled(target["test"], generator, settings.limit),
            target_train=target_train,
            target_images="development images" if settings.development_size else "test images",
        ),
    )


def _read(name: str, settings: ConfigDict) -> dict[str, LabelledImages]:
    """Both splits of a domain, with the expected numbers of images."""
    if name == "mnist_m":
        splits = mnist_m.load(expanded(settings.dir) / name)
    else:
        folder, load_split = expanded(settings.dir) / name, _READERS[name]
        if name == "mnist" and settings.tfds_dir:
            folder, load_split = expanded(settings.tfds_dir), mnist.load_tfds
        splits = {split: load_split(folder, split) for split in mnist_m.SPLITS}
    for split, data in splits.items():
        count, expected = len(data.labels), settings.expected_counts[f"{name}_{split}"]
        if expected and count != expected:
            raise UserError(
                f"{name} has {counted(count, 'image')} in split {split}, expected {expected}: "
                f"data.expected_counts.{name}_{split}=0 accepts any number"
            )
    return splits


def _blended(source: dict[str, LabelledImages], settings: ConfigDict) -> dict[str, LabelledImages]:
    patches = _photos(expanded(settings.photos_dir))
    blended = {}
    for split, data in source.items():
        generator = randomness.generator(settings.seed, f"blend {split}")
        images = mnist_m_recipe.blend(data.images[:], patches, generator)
        blended[split] = LabelledImages(images, data.labels)
    return blended


def _photos(folder: Path) -> list[np.ndarray]:
    found = image_files.scan(folder)
    if not found.images:
        raise UserError(f"data.photos_dir={folder} holds no photo")
    ranges = photos.value_ranges(found.images)
    read = {path: photos.try_read(path, 0, ranges) for path in found.images}
    bad = [*found.unreadable, *((path, why) for path, why in read.items() if isinstance(why, str))]
    if bad:
        raise folders.unreadable("photo", bad, "remove or replace")
    for path, photo in read.items():
        if min(np.shape(photo)[:2]) < 32:
            raise UserError(f"{path} is smaller than the 32x32 pixels of a digit: remove it")
    return [*map(np.asarray, read.values())]


def _development_rows(source: LabelledImages, target: LabelledImages, settings) -> np.ndarray:
    """Rows of the training split that are held out for evaluation.

    The same rows of both domains, as MNIST-M has the digits of MNIST in its order, but fewer.
    """
    size, end = settings.development_size, min(len(source.labels), len(target.labels))
    if not 0 < size < end:
        raise UserError(f"data.development_size={size}: must be between 0 and {end}")
    # A TFDS copy of MNIST is shuffled: its rows do not match those of MNIST-M, and a digit held out
    # in one domain would be trained on, with its label, in the other. A tenth agree by chance.
    same = (source.labels[:end] == target.labels[:end]).mean() >= 0.99
    if settings.name == "mnist2mnistm" and not same:
        raise UserError(
            f"data.development_size={size} needs MNIST and MNIST-M in the same order, and they are "
            f"not: read MNIST from its idx files (data.tfds_dir=''), or set it to 0"
        )
    return np.arange(end - size, end)


def _divided(train: LabelledImages, held_out: np.ndarray) -> dict[str, LabelledImages]:
    rest = np.delete(np.arange(len(train.labels)), held_out)
    return {"train": _rows(train, rest), "test": _rows(train, held_out)}


def _shuffled(data: LabelledImages, generator: np.random.Generator, limit: int) -> LabelledImages:
    return _rows(data, generator.permutation(len(data.labels))[: limit or None])


def _rows(data: LabelledImages, rows: np.ndarray) -> LabelledImages:
    return LabelledImages(data.images[rows], data.labels[rows])
