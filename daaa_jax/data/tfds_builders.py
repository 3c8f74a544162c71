"""Office-31 and MNIST-M as TFDS datasets, which TFDS lacks; prepared and read without TensorFlow.

from daaa_jax.data.tfds_builders import Office31
builder = Office31(data_dir=DIR, file_format="array_record")
builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=FOLDER_OF_THE_DOMAINS)
)
builder.as_data_source(split="webcam")
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from daaa_jax.data import folders, mnist_m, photo_domains
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError

OFFICE_CLASSES = (
    "back_pack", "bike", "bike_helmet", "bookcase", "bottle", "calculator", "desk_chair",
    "desk_lamp", "desktop_computer", "file_cabinet", "headphones", "keyboard", "laptop_computer",
    "letter_tray", "mobile_phone", "monitor", "mouse", "mug", "paper_notebook", "pen", "phone",
    "printer", "projector", "punchers", "ring_binder", "ruler", "scissors", "speaker", "stapler",
    "tape_dispenser", "trash_can",
)  # fmt: skip
Examples = Iterator[tuple[int | str, dict[str, Any]]]


class Office31(tfds.core.GeneratorBasedBuilder):
    """Office-31: 31 classes of office objects in three domains, a split each (Saenko et al., 2010).

    Images are copied from their files without decoding.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "amazon 2,817, dslr 498 and webcam 795 images."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir contains amazon/, dslr/ and webcam/, each [images/]<class>/*.jpg."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=OFFICE_CLASSES),
            "file": tfds.features.Text(),
        }
        return _dataset_info(self, features, "https://faculty.cc.gatech.edu/~judy/domainadapt/")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        root = Path(dl_manager.manual_dir)
        listings = {domain: folders.find(root / domain) for domain in photo_domains.DOMAINS}
        for listing in listings.values():
            if listing.unreadable:
                path, reason = listing.unreadable[0]
                raise UserError(f"{path} cannot be read: {reason}")
            if odd := sorted(set(listing.classes) ^ set(OFFICE_CLASSES)):
                raise UserError(f"{listing.folder} differs from Office-31's 31 classes in {odd}")
        return {domain: self._generate_examples(found) for domain, found in listings.items()}

    def _generate_examples(self, listing: folders.Listing) -> Examples:
        for file, path, label in zip(listing.files, listing.paths, listing.labels, strict=True):
            image = {"image": str(path), "label": OFFICE_CLASSES[label], "file": str(file)}
            yield str(file), image


class MnistM(tfds.core.GeneratorBasedBuilder):
    """MNIST-M: digits of MNIST blended with patches of BSDS500 photos (Ganin et al., 2016)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "59,001 training and 9,001 test images."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir contains mnist_m.tar.gz or its content: mnist_m_train/, "
        "mnist_m_train_labels.txt and the same for test."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(32, 32, 3), encoding_format="png")
        features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
        return _dataset_info(self, features, "http://yaroslav.ganin.net/")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        splits = mnist_m.load(Path(dl_manager.manual_dir))
        return {name: self._generate_examples(data) for name, data in splits.items()}

    def _generate_examples(self, data: LabelledImages) -> Examples:
        for row, (image, label) in enumerate(zip(data.images[:], data.labels, strict=True)):
            # Encoded here, as TFDS would use TensorFlow to encode an array.
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="png")
            png.seek(0)
            yield row, {"image": png, "label": int(label)}


def _dataset_info(
    builder: tfds.core.DatasetBuilder, features: Mapping[str, Any], homepage: str
) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        description=builder.__doc__,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
        homepage=homepage,
    )
