"""The dataset check: finds problems in folders of images before training.

    daaa check SOURCE [TARGET…]

Each folder is a domain of photos or records, the source first. Reports image counts, classes
missing from a domain, and files that are unreadable, tiny, or identical in two domains. The exit
code is 1 if training would refuse a folder.
"""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.check")

import collections
import hashlib
from collections.abc import Sequence

from PIL import Image

from daaa_jax.command_line import Parser
from daaa_jax.data import folders, photos, record_sets
from daaa_jax.data.record_sets import Domain
from daaa_jax.errors import UserError, counted

_TINY = 32  # pixels: shorter sides carry little information after resizing to 224
_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings and returns the exit code."""
    parser = Parser("check", __doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a domain, the source first")
    failed, source_failed, listings = False, False, []
    for number, folder in enumerate(parser.parse_args(arguments).folders):
        try:
            listings.append(record_sets.find(folder) or folders.find(folder))
        except UserError as error:
            print(f"error: {error}")
            failed, source_failed = True, source_failed or number == 0
    owners: dict[str, list] = collections.defaultdict(list)
    for number, listing in enumerate(listings):
        failed |= _check(listing, owners, is_source=number == 0 and not source_failed)
    if listings and not source_failed:
        failed |= _compare(listings)
    duplicates = [paths for paths in owners.values() if len({folder for folder, _ in paths}) > 1]
    if duplicates:
        print(f"{len(duplicates)} images are in more than one domain (identical files):")
        _show([" = ".join(str(path) for _, path in paths) for paths in duplicates])
    print("dataset check failed: fix the problems above" if failed else "OK")
    return int(failed)


def _check(listing: Domain, owners: dict[str, list], is_source: bool) -> bool:
    """Prints the findings for one domain; returns whether training would refuse it."""
    count = len(listing.classes)
    classes = counted(count, "class") if count else "no classes (unlabelled)"
    print(f"{listing.folder}: {counted(len(listing.labels), 'image')}, {classes}")
    counts = [int((listing.labels == number).sum()) for number in range(len(listing.classes))]
    for name, count in zip(listing.classes, counts, strict=True):
        print(f"  {name}: {count}")
    empty = [name for name, count in zip(listing.classes, counts, strict=True) if not count]
    if isinstance(listing, record_sets.RecordSet):
        if bad := record_sets.damaged(listing):
            print(f"  {len(bad)} record files are damaged: convert the photos again")
            _show(bad, "    ")
        return bool(bad or (empty and is_source))
    bad, tiny = [], []
    for path in listing.paths:
        try:
            photos.read(path, 8)
            with Image.open(path) as image:
                if min(image.size) < _TINY:
                    tiny.append(f"{path}: {image.size[0]} x {image.size[1]} pixels")
        except photos.UnreadableImage as error:
            bad.append(f"{path}: {error}")
            continue
        owners[hashlib.sha256(path.read_bytes()).hexdigest()].append((listing.folder, path))
    for what, lines in (
        ("files cannot be read (--config.data.on_error=skip skips them)", bad),
        ("classes without an image", empty),
        (f"images have a side shorter than {_TINY} pixels", tiny),
        ("files are ignored: no known image suffix", list(map(str, listing.others))),
    ):
        if lines:
            print(f"  {len(lines)} {what}:")
            _show(lines, "    ")
    return bool(bad or (empty and is_source))


def _compare(listings: Sequence[Domain]) -> bool:
    """Prints the differences between the classes; returns whether training would refuse them.

    Targets may lack classes of the source, the first domain, but not add any.
    """
    source, *others = listings
    why = folders.why_no_source(source.folder, source.classes, source.files)
    failed = bool(why)
    if failed:
        print(why)
    for listing in others:
        if listing.name == source.name:
            print(f"{listing.folder} has the same name as {source.folder}: rename one")
            failed = True
    for listing in (other for other in others if other.classes and source.classes):
        missing = sorted(set(source.classes) - set(listing.classes))
        added = sorted(set(listing.classes) - set(source.classes))
        failed |= bool(added)
        for names, what in ((missing, f"lacks {len(missing)}"), (added, f"adds {len(added)}")):
            if names:
                print(f"{listing.folder} {what} classes, compared with {source.folder}:")
                _show(names)
    return failed


def _show(lines: Sequence[str], indent: str = "  ") -> None:
    for line in lines[:_SHOWN]:
        print(f"{indent}{line}")
    if len(lines) > _SHOWN:
        print(f"{indent}and {len(lines) - _SHOWN} more")
