"""The doctor: looks at folders of images before anything is trained on them.

    daaa check SOURCE [TARGET…]

Each folder is a domain, of photos or of records, the source first. Tells counts, classes that one
has and the other lacks, and files that cannot be read, are tiny, or are the same in two domains.
Ends with 1 where training would refuse a folder.
"""

import collections
import hashlib
import sys
from collections.abc import Sequence

from PIL import Image

from daaa_jax.command_line import Parser
from daaa_jax.data import folders, photos, record_sets
from daaa_jax.errors import UserError
from daaa_jax.runtime import exit_codes

_TINY = 32  # pixels: smaller sides say little after resizing to 224
_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was found; returns the exit code."""
    parser = Parser("check", __doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a domain, the source first")
    sick, sick_source, listings = False, False, []
    for number, folder in enumerate(parser.parse_args(arguments).folders):
        try:
            listings.append(record_sets.find(folder) or folders.find(folder))
        except UserError as error:
            print(f"error: {error}")
            sick, sick_source = True, sick_source or number == 0
    owners = collections.defaultdict(list)
    for number, listing in enumerate(listings):
        sick |= _check(listing, owners, is_source=number == 0 and not sick_source)
    if listings and not sick_source:
        sick |= _compare(listings)
    twins = {
        digest: paths
        for digest, paths in owners.items()
        if len({listing for listing, _ in paths}) > 1
    }
    if twins:
        print(f"{len(twins)} images are in more than one domain, byte for byte:")
        _show([" = ".join(str(path) for _, path in paths) for paths in twins.values()])
    print("something must be mended" if sick else "fit to train on")
    return int(sick)


def _check(
    listing: folders.Listing | record_sets.RecordSet, owners: dict[str, list], is_source: bool
) -> bool:
    """Prints the state of one domain; whether training would refuse it."""
    classes = f"{len(listing.classes)} classes" if listing.classes else "no classes (unlabelled)"
    print(f"{listing.folder}: {len(listing.labels)} images, {classes}")
    counts = [int((listing.labels == number).sum()) for number in range(len(listing.classes))]
    for name, count in zip(listing.classes, counts, strict=True):
        print(f"  {name}: {count}")
    empty = [name for name, count in zip(listing.classes, counts, strict=True) if not count]
    if isinstance(listing, record_sets.RecordSet):
        if bad := record_sets.damaged(listing):
            print(f"  {len(bad)} files of records are damaged: convert the photos anew")
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
        ("cannot be read (--config.data.on_error=skip leaves them out)", bad),
        ("are missing: classes without an image", empty),
        (f"have a side of less than {_TINY} pixels", tiny),
        ("are no images by their ending, and are passed over", list(map(str, listing.others))),
    ):
        if lines:
            print(f"  {len(lines)} files {what}:")
            _show(lines, "    ")
    return bool(bad or (empty and is_source))


def _compare(listings: Sequence[folders.Listing | record_sets.RecordSet]) -> bool:
    """Prints the classes that a domain has and another lacks; whether training would refuse them.

    The first domain is the source, whose classes the others may lack but not exceed.
    """
    source, *others = listings
    why = folders.why_no_source(source.folder, source.classes, source.files)
    sick = bool(why)
    if sick:
        print(why)
    for listing in others:
        if listing.name == source.name:
            print(f"{listing.folder} has the same name as {source.folder}: rename one")
            sick = True
    for listing in (other for other in others if other.classes and source.classes):
        missing = sorted(set(source.classes) - set(listing.classes))
        strange = sorted(set(listing.classes) - set(source.classes))
        sick |= bool(strange)
        for names, what in ((missing, f"lacks {len(missing)}"), (strange, f"adds {len(strange)}")):
            if names:
                print(f"{listing.folder} {what} classes, against {source.folder}:")
                _show(names)
    return sick


def _show(lines: Sequence[str], indent: str = "  ") -> None:
    for line in lines[:_SHOWN]:
        print(f"{indent}{line}")
    if len(lines) > _SHOWN:
        print(f"{indent}and {len(lines) - _SHOWN} more")


def command() -> None:
    """The command; see `exit_codes.run` for how it ends."""
    exit_codes.run(lambda: sys.exit(main()))


if __name__ == "__main__":
    command()
