"""Which files of a folder are images: one rule for every command.

1. Files and folders that operating systems, network drives, photo programs and version control
   leave are ignored, at any depth (`_IGNORED`, `_IGNORED_WITH`).
2. An image is what Pillow reads, whatever its suffix.
3. A file with an image's suffix or first bytes that cannot be read is an unreadable image, and so
   is one that iCloud has not downloaded, a link that leads nowhere, and a folder that cannot be
   entered.
4. Anything else is passed over, and counted.
"""

import dataclasses
import fnmatch
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from daaa_jax.data import photos
from daaa_jax.errors import reason

# Names in lower case; hidden ones start with a dot.
_IGNORED = (
    ".*", "~$*", "desktop.ini", "thumbs.db", "thumbs.db:*", "ehthumbs*.db", "icon\r", "lost+found",
    "$recycle.bin", "system volume information", "found.[0-9][0-9][0-9]", "__macosx",
    "network trash folder", "temporary items", "thevolumesettingsfolder", "@eadir", "@__thumb",
    "@recycle", "@recently-snapshot", "@tmp", "@syno*", "#recycle", "#snapshot", "~snapshot",
    "lost.dir", "_vti_*", "picasa.ini", "zbthumbnail.info", "pspbrwse.jbf", "*.lrdata", "*.lrcat",
    "*.lrcat-*", "*.lrcat.lock", "digikam4.db", "thumbnails-digikam.db", "albumartsmall.jpg",
    "albumart_{*", "*.???_original", "*.????_original", "*.*~", "*.crdownload", "*.part",
    "*.partial", "*.filepart", "*.!ut", "*_exiftool_tmp", "~syncthing~*", "*.thm", "[[]originals]",
    "dfsrprivate", "thefindbycontentfolder", "_svn", "__pycache__",
)  # fmt: skip
# Folders whose names may also be classes, each with a file or folder that a system puts into it.
_IGNORED_WITH = (
    "recycle[dr]/info2", "recycler/s-1-*", "captureone/cache", "captureone/settings*",
    "cvs/entries", "rcs/*,v", "sccs/s.*",
)  # fmt: skip
_PATTERN, _PATTERN_WITH = (
    re.compile("|".join(map(fnmatch.translate, names))) for names in (_IGNORED, _IGNORED_WITH)
)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files below a folder; each list is sorted.

    Attributes:
      images: files with an image's suffix or first bytes.
      others: files that are not images.
      ignored: what a system left; a folder counts once.
      unreadable: links that lead nowhere and folders that cannot be entered, with the reason.
      folders: the direct subfolders, also empty and unreadable ones, that are not ignored.
    """

    images: list[Path] = dataclasses.field(default_factory=list)
    others: list[Path] = dataclasses.field(default_factory=list)
    ignored: list[Path] = dataclasses.field(default_factory=list)
    unreadable: list[tuple[Path, str]] = dataclasses.field(default_factory=list)
    folders: list[Path] = dataclasses.field(default_factory=list)


def scan(folder: Path) -> Files:
    """Lists the files in a folder and its subfolders.

    Links are followed, except in circles; of several to one folder within a direct subfolder, such
    as a class, the first is.
    """
    found = Files()
    _add(folder, frozenset(), found, None)
    for paths in vars(found).values():
        paths.sort()
    return found


def _add(path: Path, above: frozenset[Path], found: Files, seen: set[Path] | None) -> None:
    """Adds a file, or those in a folder.

    Args:
      above: all folders that contain it, resolved.
      seen: the folders of this direct subfolder so far, resolved; None for the top folder.
    """
    is_direct = seen == set()
    try:
        mode = path.stat().st_mode
        names = os.listdir(path) if stat.S_ISDIR(mode) else []
    except OSError as error:
        where = f": a link to {os.readlink(path)}" if os.path.islink(path) else ""
        found.unreadable.append((path, f"{reason(error)}{where}"))
        # What leads nowhere may have been a folder if it has no suffix.
        if is_direct and (path.is_dir() or not (path.suffix or Path(os.readlink(path)).suffix)):
            found.folders.append(path)
        return
    if not stat.S_ISDIR(mode):
        is_image = stat.S_ISREG(mode) and _is_image(path)  # not a pipe or a socket
        (found.images if is_image else found.others).append(path)
    elif seen is not None and any(_PATTERN_WITH.match(f"{path.name}/{n}".lower()) for n in names):
        found.ignored.append(path)
    elif (real := path.resolve()) not in above and real not in (seen or ()):
        above |= {real, *real.parents}
        if is_direct:
            found.folders.append(path)
        if seen is not None:
            seen.add(real)
        for name in sorted(names):
            if _PATTERN.match(name.lower()) and not photos.is_in_icloud(name):
                found.ignored.append(path / name)
            else:
                _add(path / name, above, found, set() if seen is None else seen)


def _is_image(path: Path) -> bool:
    is_named = path.suffix.lower() in photos.SUFFIXES or photos.is_in_icloud(path.name)
    return is_named or photos.starts_as_image(path)


def with_images(ignored: Iterable[Path], root: Path) -> list[Path]:
    """Those of the ignored folders that hold an image in the place of a class, in `root`."""

    def counts(path: Path) -> bool:
        return not _PATTERN.match(path.name.lower()) and path.is_file() and _is_image(path)

    places = (folder for folder in ignored if folder.parent == root)
    return [folder for folder in places if any(map(counts, folder.glob("*")))]


def files_in_any_case(folder: Path) -> list[Path]:
    """All files in a folder, and in those beside it with its name but for capitals and dashes.

    For instance, torchvision writes `MNIST/raw/`. Empty if there is no such folder.
    """

    def plain(path: Path) -> str:
        return path.name.lower().replace("-", "_")

    places = [path for path in sorted(folder.parent.glob("*")) if plain(path) == plain(folder)]
    # The names of `.` and `..` match none.
    found = [scan(place) for place in places or [folder] if place.is_dir()]
    return [path for files in found for path in sorted(files.images + files.others)]
