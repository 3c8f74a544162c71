"""Domains as list files, `LIST.txt`: a line per image, its path and then its label."""

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from daaa_jax.data import photos
from daaa_jax.data.folders import UNKNOWN, Listing, composed
from daaa_jax.data.record_sets import Domain
from daaa_jax.errors import UserError, listed, readable
from daaa_jax.runtime import files

_PATH_AND_LABEL = re.compile(r"(.*[^\s,;])(?:\s*[,;]\s*|\s+)([^\s,;/]+)")


@dataclasses.dataclass(frozen=True)
class Options:
    """How lists are read.

    Attributes:
      root: folder of relative paths; empty for the folder of the list.
      path_prefix: beginning of the paths that is left out.
      class_names: a file with a name per line, or names separated by commas, in the order of the
        labels; empty for the names of the folders.
    """

    root: str = ""
    path_prefix: str = ""
    class_names: str = ""


def find(place: str | Path, options: Options) -> Listing:
    """Reads a list of a domain.

    A label is the last field of its line, a number or a name; a list may also have no labels. A
    class has the name in `options.class_names`, else of the folder that all its files share, or its
    number if another class has the same folder.

    Raises:
      UserError: if the list cannot be read, lacks some labels, or files of one label are in the
        folders of two.
    """
    path = Path(place).expanduser()
    entries = read(path, options)
    known = [(file, label) for file, label in entries if os.path.isfile(file)]
    if not known:
        raise UserError(
            f"{path} names no image that exists ({entries[0][0]}): set data.root to the folder of "
            "its paths, or data.path_prefix to the beginning to leave out"
        )
    lost = {file for file, _ in entries} - {file for file, _ in known}
    without = [number for number, (_, label) in enumerate(entries, start=1) if label is None]
    if 0 < len(without) < len(entries):
        raise UserError(
            f"{path}: {len(without)} lines have no label, the first is line {without[0]}"
        )
    names = {} if without else _class_names(path, entries, options)
    counts = collections.Counter(str(file) for file, _ in entries)
    if repeated := [file for file, count in counts.items() if count > 1]:
        print(f"warning: {path} names files more than once: {listed(repeated, 3)}", flush=True)
    numbers = {label: number for number, label in enumerate(names)}
    return Listing(
        name=composed(path.stem),
        folder=Path(os.path.commonpath([file.parent for file, _ in known])),
        classes=tuple(names.values()),
        paths=tuple(file for file, _ in known),
        labels=np.array([numbers.get(label or "", UNKNOWN) for _, label in known], np.int32),
        unreadable=tuple((file, f"no such file, named in {path}") for file in sorted(lost)),
        list_labels=tuple(names),
    )


def read(path: Path, options: Options) -> list[tuple[Path, str | None]]:
    """Paths and labels in a list; None for a line without a label.

    Raises:
      UserError: if the file cannot be read or has no line.
    """
    lines = _lines(path)
    if not lines:
        raise UserError(f"{path} is empty: expected lines of a path and a label")
    root = Path(options.root).expanduser() if options.root else path.parent
    return [_entry(line, root, options.path_prefix) for line in lines]


def _entry(line: str, root: Path, prefix: str) -> tuple[Path, str | None]:
    def place(text: str) -> Path:
        text = text.strip().strip('"').removeprefix(prefix)
        found = root / (text.lstrip("/") if prefix else text)
        return found if "\\" not in text or found.exists() else root / text.replace("\\", "/")

    if os.path.isfile(place(line)):
        return place(line), None
    found = _PATH_AND_LABEL.fullmatch(line)
    if found is None or Path(line).suffix.lower() in photos.SUFFIXES:
        return place(line), None
    return place(found[1]), found[2]


def _lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty."""
    with readable(path):
        text = files.decoded(path.read_bytes())
    return [line.strip() for line in text.splitlines() if line.strip()]


def _class_names(
    path: Path, entries: Sequence[tuple[Path, str | None]], options: Options
) -> dict[str, str]:
    """Names of the classes by label, in the order of the labels."""
    parents = collections.defaultdict(set)
    for file, label in entries:
        parents[label or ""].add(file.parent)
    labels = sorted(parents, key=_order)
    if options.class_names:
        names = _given_names(options.class_names)
        if unknown := [label for label in labels if label not in names]:
            raise UserError(
                f"{path} has the label {unknown[0]}, and data.class_names={options.class_names} "
                f"has {len(names)} names"
            )
        return names
    if not all(label.isdecimal() for label in labels):
        return {label: composed(label) for label in labels}
    shared = {label: Path(os.path.commonpath(parents[label])) for label in labels}
    for label, folder in shared.items():
        within = sorted({parent.name for parent in parents[label]})
        others = (other for name, other in shared.items() if name != label)
        if len(within) > 1 and any(other.is_relative_to(folder) for other in others):
            raise UserError(
                f"{path}: images of label {label} are in the folders {', '.join(within[:3])}: fix "
                "the list, or set data.class_names to the names of the classes"
            )
    names = {label: composed(folder.name) for label, folder in shared.items()}
    are_distinct = len(set(names.values())) == len(names)
    return names if are_distinct else {label: label for label in labels}


def _given_names(given: str) -> dict[str, str]:
    file = Path(given).expanduser()
    lines = _lines(file) if os.path.isfile(file) else given.split(",")
    names = {str(number): composed(name.strip()) for number, name in enumerate(lines)}
    fields = [name.rsplit(maxsplit=1) for name in names.values()]
    if sorted(field[-1] for field in fields if len(field) == 2) == sorted(names):
        names = {number: name for name, number in sorted(fields, key=lambda field: int(field[1]))}
    if len(set(names.values()) - {""}) < len(names):
        raise UserError(f"data.class_names={given} has a name twice, or an empty one")
    return names


def _order(label: str) -> tuple[int, str]:
    return (int(label), "") if label.isdecimal() else (0, label)


def with_names_of(source: Domain, target: Domain) -> Domain:
    """A target whose classes are the source's, where its list has labels without names.

    Raises:
      UserError: if both lists name one label differently.
    """
    known = dict(zip(source.list_labels, source.classes, strict=False))
    if set(target.classes) == set(target.list_labels) <= set(known):
        return dataclasses.replace(target, classes=tuple(known[name] for name in target.classes))
    for label, name in zip(target.list_labels, target.classes, strict=False):
        if known.get(label, name) != name:
            raise UserError(
                f"label {label} is {known[label]!r} in the list of {source.name} and {name!r} in "
                f"that of {target.name}: use one numbering, or set data.class_names"
            )
    return target
