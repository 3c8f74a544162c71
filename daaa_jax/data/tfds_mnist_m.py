"""MNIST-M as a TFDS dataset, which TFDS lacks; prepared and read without TensorFlow.

from daaa_jax.data.tfds_mnist_m import MnistM
builder = MnistM(data_dir=DIR, file_format="array_record")
builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=FOLDER_OF_MNIST_M)
)
builder.as_data_source(split="train")
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from daaa_jax.data import mnist_m
from daaa_jax.data.types import LabelledImages


class MnistM(tfds.core.GeneratorBasedBuilder):
    """MNIST-M: digits of MNIST blended with patches of BSDS500 photos (Ganin et al., 2016)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "59,001 training and 9,001 test images."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir contains mnist_m.tar.gz or its content: mnist_m_train/, "
        "mnist_m_train_labels.txt and the same for test."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yaroslav.ganin.net/",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Iterator[tuple[int, dict[str, Any]]]]:
        splits = mnist_m.load(Path(dl_manager.manual_dir))
        return {name: self._generate_examples(data) for name, data in splits.items()}

    def _generate_examples(self, data: LabelledImages) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (image, label) in enumerate(zip(data.images[:], data.labels, strict=True)):
            # Encoded here, as TFDS would use TensorFlow to encode an array.
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="png")
            png.seek(0)
            yield row, {"image": png, "label": int(label)}
