"""The dataset check: finds problems in folders of images before training.

    daaa check SOURCE [TARGET…]

Each is a domain, a folder of photos or records or a list file, the source first. Reports image
counts, classes that a domain lacks or that have nearly the same name, and images that are
unreadable, tiny, nearly uniform, or identical in two domains or classes. The exit code is 1 if
training would refuse a folder.
"""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.check")

import collections
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from daaa_jax.command_line import Parser, given_path
from daaa_jax.data import folders, image_files, image_lists, photo_domains, photos, record_sets
from daaa_jax.data.folders import Domain
from daaa_jax.errors import UserError, counted

_TINY = 32  # pixels: shorter sides carry little information after resizing to 224
_UNIFORM = 8  # of 255: smaller differences within an image are hardly visible
_IMBALANCED = 10  # largest class, relative to the smallest
_SHOWN = 10
_REMEDY = "rename or remove them, or train with --config.data.unknown_classes=ignore"

Result = TypeVar("Result")
# By an image's checksum: number of the domain, class and path of each file that holds it.
Owners = dict[str, list[tuple[int, str, Path]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings and returns the exit code."""
    parser = Parser("check", __doc__)
    parser.add_argument(
        "domains",
        nargs="+",
        type=given_path,
        metavar="DIR_OR_LIST",
        help="the source's folder, then the target's; or list files: on each line the path of an "
        "image and its class after spaces or a comma (a target's list may have no classes)",
    )
    parser.add_list_flags()
    parser.add_argument(
        "--class_names",
        default="",
        help="for lists with numbers: names of classes 0, 1, …, with commas, or a file of them",
    )
    flags = parser.parse_args(arguments)
    options = image_lists.Options(flags.root, flags.path_prefix, flags.class_names)
    first, *rest = flags.domains
    places = {Path(place).resolve(): place for place in rest}.values()
    source = _or_error(photo_domains.find, first, options)
    found = [_or_error(_other_than, source, place, options) for place in places]
    targets = [target for target in found if target is not None]
    failed = source is None or len(targets) < len(found)
    named = None if source is None else _or_error(image_lists.with_shared_names, source, targets)
    if named:
        source, targets = named
    owners: Owners = collections.defaultdict(list)
    for number, listing in enumerate([source, *targets]):
        failed |= listing is not None and _check(listing, owners, number)
    failed |= not named or _compare(*named)
    _show_duplicates(owners)
    print("dataset check failed: fix the problems above" if failed else "OK")
    return int(failed)


def _or_error(function: Callable[..., Result], *arguments: Any) -> Result | None:
    """What a function returns; None if it raises a `UserError`, which is printed."""
    try:
        return function(*arguments)
    except UserError as error:
        print(f"error: {error}")
        return None


def _other_than(source: Domain | None, place: str, options: image_lists.Options) -> Domain:
    target = photo_domains.find(place, options)
    if source is not None:
        photo_domains.check_differ(source, target)
    return target


def _check(listing: Domain, owners: Owners, domain: int) -> bool:
    """Prints the findings for one domain; returns whether training would refuse it.

    Args:
      listing: the domain.
      owners: adds its files.
      domain: its number, 0 for the source.
    """
    number = len(listing.classes)
    classes = counted(number, "class") if number else "no classes (unlabelled)"
    print(f"{listing.folder}: {counted(len(listing.labels), 'image')}, {classes}")
    images = collections.Counter(listing.labels.tolist())
    counts = {name: images[number] for number, name in enumerate(listing.classes)}
    for name, count in counts.items():
        print(f"  {name}: {count}")
    empty = [repr(name) for name, count in counts.items() if not count]
    _report("classes without an image", empty)
    similar = folders.similar_classes(listing.classes)
    _report("pairs of classes that differ only in case or spaces", similar)
    if domain == 0:
        most = max(counts.values(), default=0)
        rare = [f"{name}: {n}" for name, n in counts.items() if 0 < n * _IMBALANCED <= most]
        _report(f"classes with at most a {_IMBALANCED}th of the images of the largest", rare)
    if isinstance(listing, folders.Listing):
        bad = _check_images(listing, owners, domain)
    else:
        bad = record_sets.damaged(listing)
        _report("damaged record files: convert the photos again", bad)
    return bool(bad or (empty and domain == 0))


def _check_images(listing: folders.Listing, owners: Owners, domain: int) -> list[str]:
    """Prints the findings for the images of a domain; returns those that cannot be read."""
    bad = [f"{path}: {reason}" for path, reason in listing.unreadable]
    tiny, transparent, uniform = [], [], []
    ranges = photos.value_ranges(listing.paths)
    for path, label in zip(listing.paths, listing.labels, strict=True):
        try:
            pixels = photos.read(path, _TINY, ranges)
            with photos.opened(path) as image:
                if min(image.size) < _TINY:
                    tiny.append(f"{path}: {image.width} x {image.height} pixels")
                if photos.is_all_transparent(image):
                    transparent.append(str(path))
                content = hashlib.sha256(path.read_bytes()).hexdigest()
        except photos.UnreadableImage as error:
            bad.append(f"{path}: {error}")
            continue
        if np.ptp(pixels) < _UNIFORM:
            uniform.append(f"{path}: values {pixels.min()} to {pixels.max()} of 255")
        name = listing.classes[label] if listing.classes else ""
        owners[content].append((domain, name, path))
    for kind, (low, high) in ranges.items():
        print(f"  values of type {kind} are read from {low:g} (black) to {high:g} (white)")
    _report("files that cannot be read (--config.data.on_error=skip skips them)", bad)
    _report(f"images with a side shorter than {_TINY} pixels", tiny)
    _report("images of one colour, or nearly", uniform)
    _report("images without a visible pixel, read as opaque", transparent)
    _report("files that are not images, left out", listing.others)
    _report("files and folders of a system, ignored", listing.ignored)
    ignored = image_files.with_images(listing.ignored, listing.folder)
    _report("ignored folders that hold images (rename those that are classes)", ignored)
    return bad


def _compare(source: Domain, targets: Sequence[Domain]) -> bool:
    """Prints the differences between the classes; returns whether training would refuse them.

    Targets may lack classes of the source, but not add any.
    """
    if why := folders.why_no_source(source.folder, source.classes, source.files):
        print(why)
    failed = bool(why)
    for target in (target for target in targets if target.classes and source.classes):
        present = folders.with_images(target)
        missing = sorted(set(source.classes) - present)
        added = sorted(present - set(source.classes))
        failed |= bool(added)
        _report(f"{target.folder} lacks classes of {source.folder}", map(repr, missing), "")
        more = f"{target.folder} has classes that {source.folder} lacks ({_REMEDY})"
        _report(more, map(repr, added), "")
    return failed


def _show_duplicates(owners: Owners) -> None:
    """Prints which files are identical in two domains, and in two classes of a domain."""
    shared, twice = [], []
    for copies in owners.values():
        domains = {domain for domain, _, _ in copies}
        line = " = ".join(str(path) for _, _, path in copies)
        if len(domains) > 1:
            shared.append(line)
        if len({(domain, name) for domain, name, _ in copies}) > len(domains):
            twice.append(line)
    _report("identical files in more than one domain", shared, "")
    _report("identical files in more than one class of a domain", twice, "")


def _report(what: str, found: Iterable[object], indent: str = "  ") -> None:
    """Prints the number of findings and the first ones, if there are any."""
    if lines := list(found):
        print(f"{indent}{what}: {len(lines)}")
        for line in lines[:_SHOWN]:
            print(f"{indent}  {line}")
        if len(lines) > _SHOWN:
            print(f"{indent}  and {len(lines) - _SHOWN} more")
