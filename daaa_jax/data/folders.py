"""Domains as folders of images: listed by class, decoded once, cached as uint8."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from daaa_jax.data import cache, image_files, photos
from daaa_jax.data.images import chosen
from daaa_jax.data.types import ImageArray
from daaa_jax.errors import UserError, counted, listed
from daaa_jax.runtime.files import expanded

UNKNOWN = -1  # label of the images of a flat folder, one without classes
# Folders of these names above the classes are parts of a dataset: `Train`, `test2017`, `val_set`.
_PARTS = r"train(ing|val)?|trn|val(id(ation|ate)?)?|test(ing)?|tst|dev|eval(uation)?"
_SPLIT = re.compile(rf"(?i)\s*({_PARTS})[\W_]*(set|data|images?|split)?[\W\d_]*[ab]?")
# And such as differ in these words alone: `images_train` and `images_test`, `fold_0` and `fold_1`.
_PART = re.compile(rf"({_PARTS}|(un)?labell?ed|query|gallery|support|fold|split|pred)(set)?")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_a-zA-Z]+")
# Unicode categories that a log line cannot show: controls, bytes that are not UTF-8, line ends.
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclasses.dataclass(frozen=True)
class _Domain:
    """What is known of a domain, whether its images are decoded or not.

    Attributes:
      name: last part of the absolute path of what was given to `find`.
      folder: folder that contains the files; ends in `images` if they are in `images/`. Of records,
        their path or address.
      classes: names in alphabetical order, in Unicode NFC; empty for a flat folder.
      labels: class of each image, int32 `[N]`; `UNKNOWN` for a flat folder.
      unreadable: links that lead nowhere and folders that cannot be entered, with the reason.
      list_labels: label of each class in a list file; empty for a folder.
      is_numbered: whether classes of a list file are named by their labels, having no others.
    """

    name: str
    folder: Path | str
    classes: tuple[str, ...]
    labels: np.ndarray
    _: dataclasses.KW_ONLY
    unreadable: tuple[tuple[Path, str], ...] = ()
    list_labels: tuple[str, ...] = ()
    is_numbered: bool = False


@dataclasses.dataclass(frozen=True)
class Listing(_Domain):
    """The image files of a domain.

    Attributes:
      paths: the files, sorted by class and then by name.
      others: files that are not images.
      ignored: what a system left, see `image_files`.
    """

    folder: Path
    paths: tuple[Path, ...]
    others: tuple[Path, ...] = ()
    ignored: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[PurePath, ...]:
        """Path of each image within the domain."""
        return tuple(path.relative_to(self.folder) for path in self.paths)

    def chosen(self, rows: np.ndarray) -> "Listing":
        """Subset of the images, in the order of `rows`."""
        paths = tuple(self.paths[row] for row in rows)
        return dataclasses.replace(self, paths=paths, labels=self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Decoded(_Domain):
    """The images of a domain, decoded from its files or stored as records.

    Attributes:
      files: path of each image within the domain.
      images: uint8 `[N,size,size,3]`.
      ranges: values shown as black and white, by number type; see `photos.value_ranges`.
      left_out: number of files that could not be read.
    """

    files: tuple[PurePath, ...]
    images: ImageArray
    ranges: photos.ValueRanges
    left_out: int = 0

    def chosen(self, rows: np.ndarray) -> "Decoded":
        """Subset of the images, in the order of `rows`."""
        files, images = tuple(self.files[row] for row in rows), chosen(self.images, rows)
        return dataclasses.replace(self, files=files, images=images, labels=self.labels[rows])


Domain = Listing | Decoded


def with_images(domain: Domain) -> set[str]:
    """Names of the classes of which a domain has an image."""
    return {domain.classes[number] for number in np.unique(domain.labels) if number != UNKNOWN}


def composed(name: str) -> str:
    """Normalises a name to Unicode NFC, so that an accented letter is one character."""
    return unicodedata.normalize("NFC", name)


def find(folder: str | Path) -> Listing:
    """Lists a domain: `folder/[images/]<class>/*`, or a flat folder of images without classes.

    Subfolders of classes are included, links are followed; see `image_files` for what is an image.

    Raises:
      UserError: if the folder is missing or unreadable, has no images or both images and folders of
        images, has folders such as `train` above its classes, or has names that clash or cannot be
        shown.
    """
    root = expanded(folder)
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.exists(root) else "there is no such folder"
        raise UserError(f"{root}: {what}")
    found, inner = image_files.scan(root), root / "images"
    if found.images and all(inner in path.parents for path in found.images):
        root, found = inner, image_files.scan(inner)
    if not found.images:
        first = "".join(f"; {path}: {reason}" for path, reason in found.unreadable[:3])
        expected = f"{root}/<class>/*.jpg, or *.jpg if there are no classes"
        raise UserError(f"{root} holds no image: expected {expected}{first}")
    # The folder in `root` that contains each file; empty if that is `root` itself.
    top = {
        path: "" if path.parent == root else path.relative_to(root).parts[0]
        for path in (*found.images, *found.others, *(path for path, _ in found.unreadable))
    }
    top |= {path: path.name for path in found.folders}
    # Operating systems differ in whether an accent is a separate character.
    paths = sorted(found.images, key=lambda path: (composed(top[path]), path))
    full = list(dict.fromkeys(top[path] for path in paths))
    if len(full) > 1 and not full[0]:
        raise UserError(
            f"{root} holds both images ({paths[0].name}) and folders of images "
            f"({', '.join(full[1:4])}): put each image into its class's folder, or all into one "
            "folder if there are no classes"
        )
    _check_no_splits(root, full, found.images)
    names = sorted(set(top.values()) - {""}, key=composed)
    classes = tuple(map(composed, names)) if full[0] else ()
    if twice := [name for name, following in itertools.pairwise(classes) if name == following]:
        why = f"has two folders of one name, {twice[0]}, in different Unicode forms: merge them"
        raise UserError(f"{root} {why}")
    name = Path(os.path.abspath(expanded(folder))).name  # also of `.` and `..`
    names += [name, *(str(path.relative_to(root)) for path in paths)]
    if hidden := [name for name in names if _HIDDEN & set(map(unicodedata.category, name))]:
        what = f"{counted(len(hidden), 'name')} that cannot be shown"
        raise UserError(f"{root} has {what}, rename {', '.join(map(ascii, hidden[:3]))}")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers.get(composed(top[path]), UNKNOWN) for path in paths], np.int32)
    others, ignored, lost = tuple(found.others), tuple(found.ignored), tuple(found.unreadable)
    return Listing(name, root, classes, labels, tuple(paths), others, ignored, unreadable=lost)


def _check_no_splits(root: Path, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Refuses folders such as `train` and `test` above the classes, which are not classes.

    Warns of other folders that hold folders of the same names, as domains do.
    """
    within: dict[str, set[str]] = collections.defaultdict(set)  # folders in each; "" for images
    for path in paths:
        top, inner, *_ = (*path.relative_to(root).parts[:-1], "", "")
        within[top].add(inner)
    counts = collections.Counter(itertools.chain.from_iterable(within.values()))
    counts[""] = 0
    alike = [name for name in names if sum(counts[inner] > 1 for inner in within[name]) > 1]
    if splits := _splits(names, within):
        splits.sort(key=lambda name: "train" not in name.lower())
        raise UserError(
            f"{root} is divided into {', '.join(splits)}, which are not classes: give one of them, "
            f"such as {root / splits[0]}"
        )
    if len(alike) > 1:
        what = f"{listed(alike, 3)} in {root} are read as classes, and hold folders of the same"
        place = root / alike[0]
        print(f"warning: {what} names: if those are the classes, give {place}", flush=True)


def _splits(names: Sequence[str], within: Mapping[str, Collection[str]]) -> list[str]:
    """Those of the folders that are named as parts of a dataset, and are.

    One such name among others may be a class, unless it holds classes: theirs, or beside one other.
    """
    if len(names) > 1 and len(set(map(_without_part, names))) == 1:
        return list(names)
    splits = list(filter(_SPLIT.fullmatch, names))
    classes = set(within[splits[0]]) if splits else set()
    holds_classes = len(classes) > 1 and "" not in classes
    is_beside = len(names) == 2 or classes & set(names)
    is_part = len(splits) > 1 or splits == list(names) or (holds_classes and is_beside)
    return splits if is_part else []


def _without_part(name: str) -> str:
    """What else the words of a part's name say; the name itself if it is not named as a part."""
    words = _WORD.findall(name)
    others = [word for word in words if not _PART.fullmatch(word.lower())]
    return name if others == words else " ".join(others).lower()


def similar_classes(classes: Sequence[str]) -> list[str]:
    """Pairs of class names that differ only in case or spaces, such as `'mug' and 'Mug'`."""

    def plain(name: str) -> str:
        return "".join(name.casefold().split())

    alike = itertools.groupby(sorted(classes, key=plain), plain)
    pairs = itertools.chain.from_iterable(itertools.pairwise(names) for _, names in alike)
    return [f"{one!r} and {other!r}" for one, other in pairs]


def why_no_source(name: str | Path, classes: Sequence[str], files: Sequence[PurePath]) -> str:
    """Reason why a domain cannot be the source; empty if it can.

    Args:
      name: folder of the domain, for the message.
      classes: names of its classes.
      files: paths of its images within the folder.
    """
    if not classes:
        places = f"a folder for each, {name}/<class>/*.jpg"
        return f"the source {name} has no classes: put its images into {places}"
    if len(classes) > 1:
        return ""
    within = {file.parts[1] for file in files if len(file.parts) > 2}
    instead = f": if classes are the folders within it, give {name}/{classes[0]}" if within else ""
    return f"the source {name} has one class, {classes[0]}, and needs at least two{instead}"


def decode(domains: Mapping[str, Domain], size: int, on_error: str) -> dict[str, Decoded]:
    """Decodes the images of several domains.

    Args:
      domains: by any name; `test` is read with the ranges of `target`. Those that are decoded
        already are returned as they are.
      size: height and width to resize images to, pixels.
      on_error: for unreadable images: `raise` an error that lists them all, or `skip` them.

    Raises:
      UserError: lists every unreadable image, link and folder of all domains; with `skip`, only if
        a domain has no readable image.
    """
    decoded = {name: domain for name, domain in domains.items() if isinstance(domain, Decoded)}
    listings = {name: domain for name, domain in domains.items() if isinstance(domain, Listing)}
    bad: list[tuple[Path, str]] = []
    for name, listing in listings.items():
        ranges = decoded["target"].ranges if name == "test" else None
        images, reasons, ranges = decode_all(listing, size, ranges)
        entries = [*listing.unreadable, *zip(listing.paths, reasons, strict=True)]
        failed = [(path, reason) for path, reason in entries if reason]
        bad += failed
        good = np.flatnonzero(reasons == "")
        about = listing.name, listing.folder, listing.classes, listing.labels, listing.files
        whole = Decoded(*about, images, ranges, len(failed))
        decoded[name] = whole if len(good) == len(images) else whole.chosen(good)
    if bad and on_error != "skip":
        raise unreadable("image", bad, "fix or remove, or skip with --config.data.on_error=skip")
    if bad:
        print(f"{counted(len(bad), 'image')} left out, which cannot be read:")
        print(_lines(bad), flush=True)
    for listing in listings.values():
        if listing.others:
            what = f"files in {listing.folder} that are not images, left out"
            print(f"{what}: {len(listing.others)} ({listing.others[0].name})", flush=True)
        if ignored := image_files.with_images(listing.ignored, listing.folder):
            names = listed([str(path) for path in ignored])
            what = "ignored folders that hold images (rename those that are classes)"
            print(f"warning: {what}: {names}", flush=True)
    for name, listing in listings.items():
        if not decoded[name].files:
            raise UserError(f"no image in {listing.folder} can be read\n{_lines(bad[:1])}")
    return decoded


def unreadable(noun: str, files: Sequence[tuple[Path, str]], remedy: str) -> UserError:
    """The error that lists files that cannot be read, each with the reason."""
    return UserError(f"{counted(len(files), noun)} cannot be read: {remedy}\n{_lines(files)}")


def _lines(files: Sequence[tuple[Path, str]]) -> str:
    return "\n".join(f"  {path}: {reason}" for path, reason in files)


def decode_all(
    listing: Listing, size: int, ranges: photos.ValueRanges | None = None
) -> tuple[np.ndarray, np.ndarray, photos.ValueRanges]:
    """Decodes the images of a listing once, and caches them.

    Args:
      listing: the images.
      size: height and width to resize them to, pixels.
      ranges: values shown as black and white; those of the images themselves if None.

    Returns:
      Images, uint8 `[N,size,size,3]`; for each why it could not be read, strings `[N]`, empty if it
      was; and the values shown as black and white, see `photos.value_ranges`.
    """
    name = f"{identity(listing, size)} {json.dumps(ranges)}"
    keys = ("images", "reasons", "ranges")

    def decode(new: cache.New) -> dict[str, np.ndarray]:
        images = new("images", (len(listing.paths), size, size, 3), np.uint8)
        used = photos.value_ranges(listing.paths) if ranges is None else ranges
        unreadable = photos.read_all(listing.paths, images, listing.name, used)
        reasons = np.array([unreadable.get(row, "") for row in range(len(images))], np.str_)
        return {"images": images, "reasons": reasons, "ranges": np.array(json.dumps(used))}

    arrays = cache.get(name, keys, decode)
    used = json.loads(str(arrays["ranges"]))
    # A cached failure may have been caused by the disk, or by an older Pillow.
    failed = (listing.paths[position] for position in np.flatnonzero(arrays["reasons"] != ""))
    if not all(isinstance(photos.try_read(path, size, used), str) for path in failed):
        cache.drop(name)
        arrays = cache.get(name, keys, decode)
    return arrays["images"], arrays["reasons"], json.loads(str(arrays["ranges"]))


def identity(listing: Listing, size: int) -> str:
    """Hash that changes with any file's name, size, content or permissions, or if one is lost."""
    digest = hashlib.sha256(f"photos 4, {size}, ".encode())
    digest.update(os.fsencode(listing.folder.resolve()))
    for path in listing.paths:
        digest.update(f"\n{path.relative_to(listing.folder)} ".encode())
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode())
    return digest.hexdigest()
