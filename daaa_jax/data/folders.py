"""Domains as folders of images: listed by class, decoded once, cached as uint8."""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from daaa_jax.data import cache, list_files, photos
from daaa_jax.data.images import chosen
from daaa_jax.data.types import ImageArray
from daaa_jax.errors import UserError

UNKNOWN = -1  # label of the images of a flat folder, one without classes
# Unicode categories that a log line cannot show: controls, bytes that are not UTF-8, line ends.
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a domain.

    Attributes:
      name: last part of the path given to `find`.
      folder: folder that contains the files; ends in `images` if they are in `images/`.
      classes: names in alphabetical order, in Unicode NFC; empty for a flat folder.
      paths: the files, sorted by class and then by name.
      labels: class of each image, int32 `[N]`; `UNKNOWN` for a flat folder.
      others: files without an image suffix.
    """

    name: str
    folder: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray
    others: tuple[Path, ...]

    @property
    def files(self) -> tuple[PurePath, ...]:
        """Path of each image within the domain."""
        return tuple(path.relative_to(self.folder) for path in self.paths)

    def chosen(self, rows: np.ndarray) -> "Listing":
        """Subset of the images, in the order of `rows`."""
        paths = tuple(self.paths[row] for row in rows)
        return dataclasses.replace(self, paths=paths, labels=self.labels[rows])


def composed(name: str) -> str:
    """Normalises a name to Unicode NFC, so that an accented letter is one character."""
    return unicodedata.normalize("NFC", name)


@list_files.readable()
def find(folder: str | Path) -> Listing:
    """Lists a domain: `folder/[images/]<class>/*`, or a flat folder of images without classes.

    Subfolders of classes are included, links are followed, and hidden files are ignored.

    Raises:
      UserError: if the folder is missing or unreadable, has no images or both images and folders of
        images, or has names that clash or cannot be shown.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise UserError(f"{root}: {what}")
    inner = root / "images"
    beside = [child for child in _folders(root) if child != inner and images_in(child)]
    if inner.is_dir() and not beside and not _images(_files(root))[0]:
        root = inner
    flat, others = _images(_files(root))
    by_class = {child.name: _images(list_files.files(child)) for child in _folders(root)}
    by_class = {name: found for name, found in by_class.items() if any(found)}
    full = {name for name, (images, _) in by_class.items() if images}
    if flat and full:
        raise UserError(
            f"{root} holds both images ({flat[0].name}) and folders of images "
            f"({', '.join(sorted(full)[:3])}): put each image into its class's folder, or all into "
            "one folder if there are no classes"
        )
    paths = [*flat, *(path for images, _ in by_class.values() for path in images)]
    others += [path for _, rest in by_class.values() for path in rest]
    if not paths:
        raise UserError(
            f"{root} holds no image: expected {root}/<class>/*.jpg, or *.jpg if there are no "
            f"classes; known suffixes are {', '.join(sorted(photos.SUFFIXES))}"
        )
    # Operating systems differ in whether an accent is a separate character.
    classes = () if flat else tuple(composed(name) for name in by_class)
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(
            f"{root} has two folders of one name, {twice}, in different Unicode forms: merge them"
        )
    names = [Path(folder).name, *by_class, *(str(path.relative_to(root)) for path in paths)]
    if hidden := [name for name in names if _HIDDEN & set(map(unicodedata.category, name))]:
        raise UserError(
            f"{root} has {len(hidden)} names that cannot be shown, rename "
            f"{', '.join(map(ascii, hidden[:3]))}"
        )
    labels = [UNKNOWN] * len(flat)
    labels += [number for number, (images, _) in enumerate(by_class.values()) for _ in images]
    return Listing(
        Path(folder).name, root, classes, tuple(paths), np.array(labels, np.int32), tuple(others)
    )


def why_no_source(name: str | Path, classes: Sequence[str], files: Sequence[PurePath]) -> str:
    """Reason why a domain cannot be the source; empty if it can.

    Args:
      name: folder of the domain, for the message.
      classes: names of its classes.
      files: paths of its images within the folder.
    """
    if not classes:
        return (
            f"the source {name} has no classes: put its images into a folder for each, "
            f"{name}/<class>/*.jpg"
        )
    if len(classes) > 1:
        return ""
    within = {file.parts[1] for file in files if len(file.parts) > 2}
    instead = f": if classes are the folders within it, give {name}/{classes[0]}" if within else ""
    return f"the source {name} has one class, {classes[0]}, and needs at least two{instead}"


def images_in(folder: Path) -> list[Path]:
    """Image files in a folder and its subfolders, sorted, without hidden ones."""
    return _images(list_files.files(folder))[0]


def _folders(root: Path) -> list[Path]:
    """Direct subfolders, sorted, without hidden ones."""
    return sorted(
        (child for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")),
        key=lambda child: composed(child.name),
    )


def _files(folder: Path) -> list[Path]:
    """Files directly in a folder, sorted, without hidden ones."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )


def _images(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Splits files into images, by suffix, and others."""
    images = [path for path in files if path.suffix.lower() in photos.SUFFIXES]
    return images, [path for path in files if path.suffix.lower() not in photos.SUFFIXES]


def decode(
    listings: Mapping[str, Listing], size: int, on_error: str
) -> dict[str, tuple[ImageArray, np.ndarray]]:
    """Decodes the images of several domains.

    Args:
      listings: domains by any name, from `find`.
      size: height and width to resize images to, pixels.
      on_error: for unreadable images: `raise` an error that lists them all, or `skip` them.

    Returns:
      For each domain, images, uint8 `[n,size,size,3]`, and their positions in the listing.

    Raises:
      UserError: lists every unreadable image of all domains; with `skip`, only if a domain has no
        readable image.
    """
    decoded = {name: decode_all(listing, size) for name, listing in listings.items()}
    lines = [
        f"  {listing.paths[position]}: {reason}"
        for name, listing in listings.items()
        for position, reason in enumerate(decoded[name][1])
        if reason
    ]
    if lines and on_error != "skip":
        raise UserError(
            f"{len(lines)} images cannot be read: fix or remove them, or skip them with "
            "--config.data.on_error=skip\n" + "\n".join(lines)
        )
    if lines:
        print(f"{len(lines)} images are left out because they cannot be read:")
        print("\n".join(lines), flush=True)
    for listing in listings.values():
        if listing.others:
            print(
                f"{len(listing.others)} files in {listing.folder} are ignored: no known image "
                f"suffix ({listing.others[0].name})",
                flush=True,
            )
    result: dict[str, tuple[ImageArray, np.ndarray]] = {}
    for name, (images, reasons) in decoded.items():
        good = np.flatnonzero(reasons == "")
        if not len(good):
            raise UserError(f"no image in {listings[name].folder} can be read\n{lines[0]}")
        result[name] = (images if len(good) == len(images) else chosen(images, good), good)
    return result


def decode_all(listing: Listing, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the images of a listing once, and caches them.

    Returns:
      Images, uint8 `[N,size,size,3]`, and for each why it could not be read, strings `[N]`, empty
      if it was.
    """
    name = identity(listing, size)

    def decode(new: cache.New) -> dict[str, np.ndarray]:
        images = new("images", (len(listing.paths), size, size, 3), np.uint8)
        unreadable = photos.read_all(listing.paths, images, listing.folder.name)
        reasons = [unreadable.get(position, "") for position in range(len(images))]
        return {"images": images, "reasons": np.array(reasons, np.str_)}

    arrays = cache.get(name, ("images", "reasons"), decode)
    # A cached failure may have been caused by the disk, or by an older Pillow.
    failed = (listing.paths[position] for position in np.flatnonzero(arrays["reasons"] != ""))
    if not all(isinstance(photos.try_read(path, size), str) for path in failed):
        cache.drop(name)
        arrays = cache.get(name, ("images", "reasons"), decode)
    return arrays["images"], arrays["reasons"]


def identity(listing: Listing, size: int) -> str:
    """Hash that changes with any file's name, size, content or permissions."""
    digest = hashlib.sha256(f"photos 2, {size}, ".encode())
    digest.update(os.fsencode(listing.folder.resolve()))
    for path in listing.paths:
        status = path.stat()
        name = path.relative_to(listing.folder)
        digest.update(
            f"\n{name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()
        )
    return digest.hexdigest()
