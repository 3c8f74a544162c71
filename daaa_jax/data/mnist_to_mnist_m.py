"""The task MNIST to MNIST-M of the paper's Table 1."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from daaa_jax.data import image_files, mnist, mnist_m, mnist_m_recipe, randomness
from daaa_jax.data.types import LabelledImages, MeasuredData, Task, UnlabelledImages
from daaa_jax.errors import UserError, counted


def load(settings: ConfigDict) -> Task:
    """MNIST as the source; MNIST-M, without its training labels, as the target.

    Args:
      settings: `config.data`; `dir`, `tfds_dir`, `photos_dir`, `seed`, `development_size`, `limit`
        and `expected_counts` are read.

    Raises:
      UserError: if a file is missing or not as expected, or a count is not in `expected_counts`.
    """
    # No folder is needed for MNIST from TFDS with MNIST-M made from photos.
    if not settings.dir and not (settings.tfds_dir and settings.photos_dir):
        raise UserError(
            "data.dir is not set: set --config.data.dir=DIR to the folder that holds mnist/ and "
            "mnist_m/"
        )
    root = Path(settings.dir).expanduser()
    read, place = mnist.load, root / "mnist"
    if settings.tfds_dir:
        read, place = mnist.load_tfds, Path(settings.tfds_dir).expanduser()
    source = {split: read(place, split) for split in ("train", "test")}
    _check_counts("mnist", source, settings)
    if settings.photos_dir:
        target = _blended(source, settings)
    else:
        target = mnist_m.load(root / "mnist_m")
        _check_counts("mnist_m", target, settings)

    generator = randomness.generator(settings.seed, "order")
    development = _development(source["train"], target["train"], settings.development_size)
    source_train, source_test = _held_out(source, development)
    target_train, target_test = _held_out(target, development)
    # MNIST-M has the digits of MNIST in the same order, which training must not exploit.
    source_train = _shuffled(source_train, generator, settings.limit)
    target_train = _shuffled(target_train, generator, settings.limit)
    return Task(
        source_name="mnist",
        target_name="mnist_m",
        class_names=tuple(str(digit) for digit in range(10)),
        source_train=source_train,
        target_train=UnlabelledImages(target_train.images),
        evaluation=MeasuredData(
            source_test=_shuffled(source_test, generator, settings.limit),
            target_test=_shuffled(target_test, generator, settings.limit),
            target_train=target_train,
            target_images="development images" if settings.development_size else "test images",
        ),
    )


def _blended(source: dict[str, LabelledImages], settings: ConfigDict) -> dict[str, LabelledImages]:
    photos = _photos(Path(settings.photos_dir).expanduser())
    blended = {}
    for split, data in source.items():
        generator = randomness.generator(settings.seed, f"blend {split}")
        images = mnist_m_recipe.blend(data.images[:], photos, generator)
        blended[split] = LabelledImages(images, data.labels)
    return blended


def _photos(folder: Path) -> list[np.ndarray]:
    paths = image_files.scan(folder).images
    if not paths:
        raise UserError(f"data.photos_dir={folder} holds no photo")
    photos = []
    for path in paths:
        try:
            photos.append(np.asarray(Image.open(path).convert("RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove or replace it") from error
        if min(photos[-1].shape[:2]) < 32:
            raise UserError(f"{path} is smaller than the 32x32 pixels of a digit: remove it")
    return photos


def _check_counts(domain: str, splits: dict[str, LabelledImages], settings: ConfigDict) -> None:
    for split, data in splits.items():
        name, count = f"{domain}_{split}", len(data.labels)
        expected = settings.expected_counts[name]
        if expected and count != expected:
            raise UserError(
                f"{domain} has {counted(count, 'image')} in its {split} split, expected "
                f"{expected}: data.expected_counts.{name}=0 accepts any number"
            )


def _held_out(
    splits: dict[str, LabelledImages], development: range | None
) -> tuple[LabelledImages, LabelledImages]:
    """Training images, and evaluation images: the test split, or rows of the training split."""
    train, test = splits["train"], splits["test"]
    if development is None:
        return train, test
    rest = np.delete(np.arange(len(train.labels)), development)
    return _rows(train, rest), _rows(train, np.asarray(development))


def _development(source: LabelledImages, target: LabelledImages, size: int) -> range | None:
    """Rows to hold out, the same digits in both: MNIST-M follows MNIST's order, but is shorter."""
    if not size:
        return None
    end = min(len(source.labels), len(target.labels))
    if not 0 < size < end:
        raise UserError(f"data.development_size={size}: must be between 0 and {end}")
    # A TFDS copy of MNIST is shuffled: its rows do not match those of MNIST-M, and a digit held out
    # in one domain would be trained on, with its label, in the other. A tenth agree by chance.
    if (source.labels[:end] == target.labels[:end]).mean() < 0.99:
        raise UserError(
            f"data.development_size={size} needs MNIST and MNIST-M in the same order, and they are "
            f"not: read MNIST from its idx files (data.tfds_dir=''), or set it to 0"
        )
    return range(end - size, end)


def _shuffled(data: LabelledImages, generator: np.random.Generator, limit: int) -> LabelledImages:
    return _rows(data, generator.permutation(len(data.labels))[: limit or None])


def _rows(data: LabelledImages, rows: slice | np.ndarray) -> LabelledImages:
    return LabelledImages(data.images[rows], data.labels[rows])
