"""Tasks made of folders of photos: Office-31, its ten shared classes, and anybody's own."""

from pathlib import Path, PurePath

import numpy as np
from ml_collections import ConfigDict

from daaa_jax.data import folders
from daaa_jax.data.types import LabelledImages, MeasuredData, Task, UnlabelledImages
from daaa_jax.errors import UserError

DOMAINS = ("amazon", "dslr", "webcam")
_WHERE = (
    "Office-31 is to be had from its authors' page, "
    "https://faculty.cc.gatech.edu/~judy/domainadapt/ (office31); put it so that there are "
    "DIR/amazon/images/<class>/*.jpg, DIR/dslr/… and DIR/webcam/…, with or without images/, and "
    "give --config.data.dir=DIR (configs/office10.py takes its ten classes shared with Caltech-256)"
)


def load(settings: ConfigDict) -> Task:
    """One domain as the source, another as the target.

    Args:
      settings: `config.data`; `source` and `target` are folders, or names of folders in `dir`;
        `target_test`, `image_size`, `on_error`, `limit`, `seed`, `expected_classes` and
        `expected_counts` are read.

    Returns:
      The task. A domain of photos has no test images of its own: the source is measured on its
      training images, the target on all of its images, or on those in `target_test`. Labels of a
      target without classes are `folders.UNKNOWN`.

    Raises:
      UserError: if a folder is missing or is not as expected, or an image cannot be read.
    """
    for name in ("source", "target"):
        if not settings[name]:
            raise UserError(f"data.{name} is not set: give a folder of images")
    source, target = (_list(settings, settings[name]) for name in ("source", "target"))
    if _name(settings.source) == _name(settings.target):
        raise UserError(
            f"data.source={settings.source} and data.target={settings.target} have the same name, "
            "which tells domains apart: rename one"
        )
    if not source.classes:
        raise UserError(
            f"the source {source.folder} has no classes: put its images into a folder for each, "
            f"{source.folder}/<class>/*.jpg"
        )
    _check_classes(source, target)
    listings = {"source": source, "target": target}
    if settings.target_test:
        test = folders.find(_place(settings, settings.target_test))
        if not test.classes:
            raise UserError(f"data.target_test={settings.target_test} has no classes")
        _check_classes(source, test)
        listings["test"] = test
    read = folders.decode(listings, settings.image_size, settings.on_error)
    data = {
        name: _labelled(listing, *read[name], source.classes, settings)
        for name, listing in listings.items()
    }
    (source_train, source_files), (target_train, target_files) = data["source"], data["target"]
    left_out = {
        _name(settings[name]): len(listings[name].paths) - len(read[name][1])
        for name in ("source", "target")
    }
    return Task(
        source_name=_name(settings.source),
        target_name=_name(settings.target),
        class_names=source.classes,
        source_train=source_train,
        target_train=UnlabelledImages(target_train.images),
        evaluation=MeasuredData(
            source_test=source_train,
            target_test=data.get("test", data["target"])[0],
            target_train=target_train,
            source_figure="source_train",
            target_images="images of data.target_test"
            if settings.target_test
            else "all target images",
        ),
        left_out=left_out,
        source_files=source_files,
        target_files=target_files,
    )


def _name(domain: str) -> str:
    return Path(domain).name


def _place(settings: ConfigDict, domain: str) -> Path:
    """The folder of a domain: one that is named, or of that name in `data.dir`."""
    if settings.name == "folder":
        return Path(domain).expanduser()
    if not settings.dir:
        raise UserError(f"data.dir is not set: give the folder of the domains. {_WHERE}")
    root = Path(settings.dir).expanduser()
    if not (root / domain).is_dir():
        raise UserError(f"{root} holds no folder {domain}. {_WHERE}")
    return root / domain


def _list(settings: ConfigDict, domain: str) -> folders.Listing:
    listing = folders.find(_place(settings, domain))
    expected = settings.expected_counts.get(domain, 0)
    if expected and len(listing.paths) != expected:
        raise UserError(
            f"{listing.folder} holds {len(listing.paths)} images, expected {expected}: restore the "
            f"data, or set --config.data.expected_counts.{domain} to its count, or to 0"
        )
    if settings.expected_classes and len(listing.classes) != settings.expected_classes:
        raise UserError(
            f"{listing.folder} holds {len(listing.classes)} classes, expected "
            f"{settings.expected_classes}: restore the data, or set "
            "--config.data.expected_classes to its count, or to 0"
        )
    return listing


def _check_classes(source: folders.Listing, target: folders.Listing) -> None:
    """Makes sure that the classes of the target, if it has any, are among those of the source."""
    strange = sorted(set(target.classes) - set(source.classes))
    if strange:
        raise UserError(
            f"{target.folder} has classes that {source.folder} has not: {', '.join(strange)}; "
            "both must name a class alike, and what is not to be told apart must be left out"
        )
    empty = [
        name for number, name in enumerate(source.classes) if not (source.labels == number).any()
    ]
    if empty:
        raise UserError(f"{source.folder}: no image in {', '.join(empty)}")


def _labelled(
    listing: folders.Listing,
    images: np.ndarray,
    read: np.ndarray,
    classes: tuple[str, ...],
    settings: ConfigDict,
) -> tuple[LabelledImages, tuple[PurePath, ...]]:
    """Images with their classes in the source's count, and where each lies in its domain."""
    places = np.array([classes.index(name) for name in listing.classes], np.int32)
    labels = listing.labels[read]
    labels = places[labels] if listing.classes else labels
    if settings.limit:
        # They are sorted by class, and some of each shall be left.
        order = np.random.default_rng(settings.seed).permutation(len(images))[: settings.limit]
        images, labels, read = images[order], labels[order], read[order]
    files = tuple(listing.paths[i].relative_to(listing.folder) for i in read)
    return LabelledImages(images, labels), files
