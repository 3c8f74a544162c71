"""Office-31 as a TFDS dataset, which TFDS lacks; prepared and read without TensorFlow.

from daaa_jax.data.tfds_office import Office31
builder = Office31(data_dir=DIR, file_format="array_record")
builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=FOLDER_OF_THE_DOMAINS)
)
builder.as_data_source(split="webcam")
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from daaa_jax.data import folders, photo_domains
from daaa_jax.errors import UserError

CLASSES = (
    "back_pack", "bike", "bike_helmet", "bookcase", "bottle", "calculator", "desk_chair",
    "desk_lamp", "desktop_computer", "file_cabinet", "headphones", "keyboard", "laptop_computer",
    "letter_tray", "mobile_phone", "monitor", "mouse", "mug", "paper_notebook", "pen", "phone",
    "printer", "projector", "punchers", "ring_binder", "ruler", "scissors", "speaker", "stapler",
    "tape_dispenser", "trash_can",
)  # fmt: skip


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
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "file": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://faculty.cc.gatech.edu/~judy/domainadapt/",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Iterator[tuple[str, dict[str, Any]]]]:
        root = Path(dl_manager.manual_dir)
        listings = {domain: folders.find(root / domain) for domain in photo_domains.DOMAINS}
        for listing in listings.values():
            if listing.unreadable:
                path, reason = listing.unreadable[0]
                raise UserError(f"{path} cannot be read: {reason}")
            if listing.classes != CLASSES:
                odd = sorted(set(listing.classes) ^ set(CLASSES))
                raise UserError(
                    f"{listing.folder} differs from the 31 classes of Office-31 in {odd}"
                )
        return {domain: self._generate_examples(found) for domain, found in listings.items()}

    def _generate_examples(self, listing: folders.Listing) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, label in zip(listing.paths, listing.labels, strict=True):
            name = str(path.relative_to(listing.folder))
            yield name, {"image": str(path), "label": CLASSES[label], "file": name}
