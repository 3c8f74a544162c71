"""Tasks from folders of photos: Office-31, its ten shared classes, and user-provided domains."""

import contextlib
import dataclasses
import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from daaa_jax.data import folders, image_lists, randomness, record_sets
from daaa_jax.data.folders import Domain
from daaa_jax.data.types import LabelledImages, MeasuredData, Task, UnlabelledImages
from daaa_jax.errors import UserError, counted, listed, readable
from daaa_jax.runtime.files import expanded

DOMAINS = ("amazon", "dslr", "webcam")
# Where data are to be had, and how they lie in `data.dir`, by `data.name`.
_WHERE = {
    "office": "Office-31 is available from its authors' page, "
    "https://faculty.cc.gatech.edu/~judy/domainadapt/ (office31): unpack it to "
    "DIR/amazon/images/<class>/*.jpg, DIR/dslr/… and DIR/webcam/…, with or without images/, and "
    "set --config.data.dir=DIR (configs/office10.py uses its ten classes shared with Caltech-256)",
    "office_home": "Office-Home is available from its authors' page, "
    "https://www.hemanthdv.org/officeHomeDataset.html: unpack it to DIR/Art/<class>/*.jpg, "
    "DIR/Clipart/…, DIR/Product/… and DIR/Real World/…, and set --config.data.dir=DIR",
    "visda": "VisDA-2017 is available from "
    "https://github.com/VisionLearningGroup/taskcv-2017-public (classification): unpack it to "
    "DIR/train/<class>/* and DIR/validation/<class>/*, and set --config.data.dir=DIR",
    "domainnet": "DomainNet's cleaned version is available from https://ai.bu.edu/M3SDA/: unpack "
    "it to DIR/clipart/<class>/* and so on, put the lists clipart_train.txt, clipart_test.txt and "
    "so on into DIR, and set --config.data.dir=DIR",
}


def load(settings: ConfigDict) -> Task:
    """One domain as the source, another as the target.

    Args:
      settings: `config.data`; `source` and `target` are folders or list files, or names of folders
        in `dir`; `root`, `path_prefix`, `class_names`, `target_test`, `image_size`, `on_error`,
        `unknown_classes`, `limit`, `seed`, `expected_classes` and `expected_counts` are read.

    Returns:
      The task. Domains of photos have no test split: the source is measured on its training
      images, the target on all its images or on those in `target_test`. Labels of a target without
      classes, and of classes that the source lacks, are `folders.UNKNOWN`.

    Raises:
      UserError: if a folder is missing or not as expected, or an image cannot be read.
    """
    source, target = (_list(settings, settings[name]) for name in ("source", "target"))
    check_differ(source, target)
    source, target = _told_apart(source, target, settings)
    others = [target] + ([_list(settings, settings.target_test)] if settings.target_test else [])
    source, (target, *tests) = image_lists.with_shared_names(source, others)
    if why := folders.why_no_source(source.folder, source.classes, source.files):
        raise UserError(why)
    _check_none_is_empty(source, source.labels)
    for domain in (source, target, *tests):
        _check_classes(source, domain, settings.unknown_classes)
    domains = {"source": source, "target": target}
    for test in tests:
        check_differ(source, test)
        if not test.classes:
            raise UserError(f"data.target_test={settings.target_test} has no classes")
        if missing := sorted(set(source.classes) - folders.with_images(test)):
            print(f"{test.folder} lacks classes, not measured: {', '.join(missing)}", flush=True)
        domains["test"] = test
    if settings.limit:
        domains = {name: _some(domain, settings, name) for name, domain in domains.items()}
    read = folders.decode(domains, settings.image_size, settings.on_error)
    if not settings.limit:
        _check_none_is_empty(source, read["source"].labels)
    data = {name: _labelled(domain, source.classes) for name, domain in read.items()}
    source_train, target_train = data["source"], data["target"]
    measured_on = "images of data.target_test" if settings.target_test else "target images"
    if set(domains.get("test", target).classes) - set(source.classes):
        measured_on += " of the source's classes"
    return Task(
        source_name=source.name,
        target_name=target.name,
        class_names=source.classes,
        source_train=source_train,
        target_train=UnlabelledImages(target_train.images),
        evaluation=MeasuredData(
            source_test=source_train,
            target_test=data.get("test", target_train),
            target_train=target_train,
            source_metric="source_train",
            target_images=measured_on,
        ),
        left_out={read[name].name: read[name].left_out for name in ("source", "target")},
        ranges={name: read[name].ranges for name in ("source", "target")},
        source_files=read["source"].files,
        target_files=read["target"].files,
    )


def check_folders(settings: ConfigDict) -> list[Path]:
    """Checks that the folders of the domains are set and can be listed; lists no image.

    Returns:
      The folders and lists on this machine.

    Raises:
      UserError: names the setting.
    """
    for name in ("source", "target"):
        if not settings[name]:
            raise UserError(f"data.{name} is not set: give a folder of images")
    places = []
    for name in ("source", "target", "target_test", "root"):
        place = settings[name]
        if place and name != "root":
            place = _place(settings, place)
        if not place or record_sets.is_remote(place):
            continue
        with (
            readable(f"data.{name}={settings[name]}"),
            contextlib.suppress(NotADirectoryError),  # a list of files, or refused as none
        ):
            os.scandir(expanded(place)).close()
        places += [expanded(place)] if name != "root" else []
    return places


def _place(settings: ConfigDict, domain: str) -> str:
    """Folder or list of a domain: for `folder` tasks, `domain` itself; otherwise in `data.dir`.

    There case, spaces and punctuation of its name do not count: `Real World` is `RealWorld`.
    """
    if settings.name == "folder":
        return domain
    where = _WHERE[settings.name]
    if not settings.dir:
        raise UserError(f"data.dir is not set: set it to the folder of the domains. {where}")
    if record_sets.is_remote(settings.dir):
        return f"{settings.dir.rstrip('/')}/{domain}"
    root = expanded(settings.dir)
    with readable(f"data.dir={settings.dir}"):
        entries = sorted(root.iterdir()) if root.is_dir() else []
    candidates = [(path.name, path) for path in entries if path.is_dir()]
    candidates += [(path.stem, path) for path in entries if path.suffix.lower() == ".txt"]
    for name, path in sorted(candidates, key=lambda candidate: candidate[0] != domain):
        if _letters(name) == _letters(domain):
            return str(path)
    raise UserError(f"data.dir={root} holds no folder or list {domain}. {where}")


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def find(place: str, options: image_lists.Options) -> Domain:
    """Finds the images of a domain: a folder of photos or records, or a list file.

    Raises:
      UserError: if there are none, or they are not as expected.
    """
    if os.path.isfile(expanded(place)):
        return image_lists.find(place, options)
    return record_sets.find(place) or folders.find(place)


def check_differ(source: Domain, target: Domain) -> None:
    """Checks that neither of two domains holds all images of the other.

    Raises:
      UserError: if one does, also through links.
    """
    ours, theirs = _places(source), _places(target)
    if ours <= theirs or theirs <= ours:
        inner, outer = (source, target) if ours <= theirs else (target, source)
        raise UserError(
            f"all images of {inner.folder} are also in {outer.folder}: give other domains"
        )


def _places(domain: Domain) -> set[str]:
    """The files of a domain, or the folder of its records, without links."""
    paths = domain.paths if isinstance(domain, folders.Listing) else [str(domain.folder)]
    return {*map(os.path.realpath, paths)}


def _told_apart(source: Domain, target: Domain, settings: ConfigDict) -> tuple[Domain, Domain]:
    """Names domains of the same name by the last parts of their paths that differ.

    `amazon/images` and `webcam/images` are `amazon` and `webcam`.
    """
    if source.name != target.name:
        return source, target
    paths = (Path(os.path.abspath(settings[name])).parts[:0:-1] for name in ("source", "target"))
    for first, second in zip(*paths, strict=False):  # the shorter path may end first
        if first != second:
            source = dataclasses.replace(source, name=folders.composed(first))
            return source, dataclasses.replace(target, name=folders.composed(second))
    both = f"data.source={settings.source} and data.target={settings.target}"
    raise UserError(f"{both} have the same name, but names must differ: rename one")


def _list(settings: ConfigDict, domain: str) -> Domain:
    """Finds a domain, and checks its counts and the size of images that are decoded already."""
    options = image_lists.Options(settings.root, settings.path_prefix, settings.class_names)
    found = find(_place(settings, domain), options)
    images, classes = settings.expected_counts.get(domain, 0), settings.expected_classes
    for what, count, expected, setting in (
        ("image", len(found.labels), images, f"expected_counts.{domain}"),
        ("class", len(found.classes), classes, "expected_classes"),
    ):
        if expected and count != expected:
            raise UserError(
                f"{found.folder} holds {counted(count, what)}, expected {expected}: restore the "
                f"data, or set --config.data.{setting} to its count (0: any)"
            )
    size = found.images.shape[1] if isinstance(found, folders.Decoded) else settings.image_size
    if size != settings.image_size:
        what = f"images of {size} pixels, and data.image_size is {settings.image_size}"
        raise UserError(f"{found.folder} has {what}: set it to {size}, or convert the photos again")
    return found


def _check_classes(source: Domain, target: Domain, unknown_classes: str) -> None:
    """Checks that the source has every class of the target."""
    if similar := folders.similar_classes(target.classes):
        what = f"classes that differ only in case or spaces: {listed(similar)}"
        print(f"warning: {target.folder} has {what}", flush=True)
    added = sorted(folders.with_images(target) - set(source.classes))
    names = listed([repr(name) for name in added])
    if added and unknown_classes == "raise":
        raise UserError(
            f"{target.folder} has classes that {source.folder} lacks: {names}; use the same name "
            "for a class in both, or set data.unknown_classes=ignore"
        )
    if added:
        numbers = [target.classes.index(name) for name in added]
        images = counted(int(np.isin(target.labels, numbers).sum()), "image")
        what = "of classes that the source lacks, unlabelled in training and not measured"
        print(f"{target.folder} has {images} {what}: {names}", flush=True)


def _check_none_is_empty(source: Domain, labels: np.ndarray) -> None:
    """Checks that every class of the source is among `labels`, of all or of the readable images."""
    empty = set(range(len(source.classes))) - set(labels.tolist())
    if empty:
        names = listed([source.classes[number] for number in sorted(empty)])
        what = "no image" if len(labels) == len(source.labels) else "no readable image"
        unreadable = "".join(f"; {path}: {reason}" for path, reason in source.unreadable[:3])
        raise UserError(
            f"{source.folder}: {what} in {names}; put one there, or remove the folder{unreadable}"
        )


def _some(listing: Domain, settings: ConfigDict, name: str) -> Domain:
    """Random subset of `limit` images; the first ones would all be of one class."""
    order = randomness.generator(settings.seed, f"limit {name}").permutation(len(listing.labels))
    return listing.chosen(order[: settings.limit])


def _labelled(domain: folders.Decoded, classes: tuple[str, ...]) -> LabelledImages:
    """Images with labels numbered as in the source."""
    known = {name: number for number, name in enumerate(classes)}
    places = [known.get(name, folders.UNKNOWN) for name in domain.classes]
    # The last one is that of images without a class, -1.
    labels = np.array([*places, folders.UNKNOWN], np.int32)[domain.labels]
    return LabelledImages(domain.images, labels)
