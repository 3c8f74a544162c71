"""Domains as list files, `LIST.txt`: a line per image, its path and then its label."""

import collections
import dataclasses
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from daaa_jax.data import photos
from daaa_jax.data.folders import UNKNOWN, Domain, Listing, composed
from daaa_jax.errors import UserError, counted, listed, readable
from daaa_jax.runtime import file_kind, files

# A path and a label, which may hold spaces after a comma or a tab.
_AFTER_COMMA = re.compile(r"(.*\S)\s*[,;\t]\s*([^,;\t/]+)")
_AFTER_SPACE = re.compile(r"(.*[^\s,;])(?:\s*[,;]\s*|\s+)([^\s,;/]+)")
# A name with its label.
_NUMBERED = (
    re.compile(r"(?P<name>.*[^\s,:;])[\s,:;]+(?P<number>\d+)"),
    re.compile(r"(?P<number>\d+)[\s,:;.)-]+(?P<name>[^\s,:;.)-].*)"),
)
# Controls, and bytes that are not UTF-8.
_HIDDEN = re.compile("[\x00-\x1f\x7f\udc80-\udcff]")


class Line(NamedTuple):
    """A line of a list: its number in the file, the image, and the label, or None without one."""

    number: int
    file: Path
    label: str | None


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
      UserError: if the list cannot be read, lacks some labels, names hidden characters or no image
        of a label that exists, has more labels than `options.class_names`, or files of one label
        are in the folders of two; names the line.
    """
    path = files.expanded(place)
    lines = [line._replace(file=line.file.absolute()) for line in read(path, options)]
    known = [line for line in lines if os.path.isfile(line.file)]
    there = {line.label for line in known}
    for number, file, label in lines:
        if label not in there:
            what = listed([f"label {label or 'missing'} of image {file}"])[:300]
            raise UserError(
                f"{path}, line {number}, read as {what}: no image of that label exists; remove a "
                "header and other columns, or set data.root to the folder of the paths, or "
                "data.path_prefix to the beginning to leave out"
            )
        if _HIDDEN.search(f"{file}{label}"):
            what = f"{ascii(str(file))[:300]} has characters that cannot be shown"
            raise UserError(f"{path}, line {number}: {what}: rename it, or save the list as UTF-8")
    lost = {line.file for line in lines} - {line.file for line in known}
    without = [line.number for line in lines if line.label is None]
    if 0 < len(without) < len(lines):
        raise UserError(f"{path}, line {without[0]}: no label ({len(without)} of {len(lines)})")
    names = {} if without else _class_names(path, lines, options)
    counts = collections.Counter(str(line.file) for line in lines)
    if repeated := [file for file, count in counts.items() if count > 1]:
        print(f"warning: {path} names files more than once: {listed(repeated, 3)}", flush=True)
    numbers = {label: number for number, label in enumerate(names)}
    return Listing(
        name=composed(path.stem),
        folder=Path(os.path.commonpath([line.file.parent for line in known])),
        classes=tuple(name or label for label, name in names.items()),
        paths=tuple(line.file for line in known),
        labels=np.array([numbers.get(line.label or "", UNKNOWN) for line in known], np.int32),
        unreadable=tuple((file, f"no such file, named in {path}") for file in sorted(lost)),
        list_labels=tuple(names),
        is_numbered=not all(names.values()),
    )


def read(path: Path, options: Options) -> list[Line]:
    """The lines of a list that are neither empty nor comments, which start with `#`.

    Raises:
      UserError: if the file cannot be read or has no line.
    """
    lines = [(number, text) for number, text in _lines(path) if not text.startswith("#")]
    if not lines:
        raise UserError(f"{path} is empty: expected lines of a path and a label")
    root = files.expanded(options.root) if options.root else path.parent
    return [Line(number, *_entry(text, root, options.path_prefix)) for number, text in lines]


def images_in(path: Path, options: Options) -> list[Path]:
    """The images that a list names, existing or not; none if most lines of a file name none."""
    try:
        named = [line.file for line in read(path, options)]
    except UserError:
        return []
    return named if 2 * sum(map(_is_image, named)) > len(named) else []


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in photos.SUFFIXES or os.path.isfile(file)


def _entry(line: str, root: Path, prefix: str) -> tuple[Path, str | None]:
    def place(text: str) -> Path:
        text = text.strip().strip('"')
        within = text.removeprefix(prefix)
        found = root / (within.lstrip("/") if within != text else os.path.expanduser(text))
        if "\\" in text and not os.path.exists(found):
            return root / text.replace("\\", "/")
        return found

    line = line.rstrip(",;\t ")
    if _is_image(place(line)):
        return place(line), None
    found = _AFTER_COMMA.fullmatch(line)
    if found is None or not _is_image(place(found[1])):
        found = _AFTER_SPACE.fullmatch(line)
    return (place(found[1]), found[2].strip('"')) if found else (place(line), None)


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers."""
    with readable(path):
        first = file_kind.head(path)
        kind = file_kind.describe(first)
        if kind not in ("", file_kind.TEXT) or "\0" in files.decoded(first):
            instead = "a folder of images (unpack an archive), or a list saved as UTF-8"
            raise UserError(f"{path} is {kind or 'not text'}: give {instead}")
        text = files.decoded(path.read_bytes())
    lines = enumerate(re.split("\r\n?|\n", text), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _class_names(path: Path, lines: Sequence[Line], options: Options) -> dict[str, str]:
    """Names of the classes by label, in the order of the labels; empty for numbers alone."""
    # The folders of each label, with the number of the first line.
    parents: dict[str, dict[Path, int]] = collections.defaultdict(dict)
    for number, file, label in lines:
        parents[label or ""].setdefault(file.parent, number)
    labels = sorted(parents, key=_order)
    if options.class_names:
        names = _given_names(options.class_names, labels)
        if unknown := [label for label in labels if label not in names]:
            where = f"{path}, line {min(parents[unknown[0]].values())}: label {unknown[0]}"
            given = f"data.class_names={options.class_names} has {counted(len(names), 'name')}"
            raise UserError(f"{where}, and {given}, numbered from 0")
        owners = collections.Counter(itertools.chain.from_iterable(parents.values()))
        for label, places in parents.items():
            shared = {composed(parent.name) for parent in places if owners[parent] == 1}
            if len(shared) == 1 and shared <= set(names.values()) - {names[label]}:
                where = f"{path}, line {min(places.values())}: label {label}"
                calls = f"data.class_names={options.class_names} calls it {names[label]!r}"
                raise UserError(f"{where} has the folder {min(shared)!r}, and {calls}: reorder it")
        return {label: names[label] for label in labels}
    inside: collections.Counter[Path] = collections.Counter()  # labels below each folder
    for places in parents.values():
        inside.update({above for parent in places for above in (parent, *parent.parents)})
    names = {}
    for label in labels:
        within = sorted({parent.name for parent in parents[label]})
        folder = Path(os.path.commonpath(parents[label]))
        # Such as `train/bike` and `test/bike`.
        names[label] = composed(within[0] if len(within) == 1 else folder.name)
        if len(within) > 1 and inside[folder] > 1 and all(map(str.isdecimal, labels)):
            second = sorted(parents[label].values())[1]
            what = f"images of label {label} are in the folders {listed(within, 3)}"
            remedy = "fix the list, or set data.class_names to the names of the classes"
            raise UserError(f"{path}, line {second}: {what}: {remedy}")
    if len(set(names.values())) < len(names):
        names = dict.fromkeys(labels, "")
    return names | {label: composed(label) for label in labels if not label.isdecimal()}


def _given_names(given: str, labels: Sequence[str]) -> dict[str, str]:
    """Names by label: numbered from 0, unless each has a label beside it, with those of a list."""
    file = Path(os.path.expanduser(given))
    is_file = os.path.isfile(file)
    if not is_file and ("," not in given or given.endswith(".txt")):
        raise UserError(f"data.class_names={given}: there is no such file")
    if is_file:
        lines = [line for _, line in _lines(file) if not line.startswith("#")]
    else:  # perhaps as Python writes a list
        lines = (given[1:-1] if given[0] + given[-1] == "[]" else given).split(",")
    plain = [re.sub(r"^(['\"])(.*)\1$", r"\2", composed(line.strip())) for line in lines]
    names = {str(number): name for number, name in enumerate(plain)}
    for numbered in _NUMBERED:
        found = {m["number"]: m["name"] for m in map(numbered.fullmatch, plain) if m}
        if set(labels) <= set(found) and len(set(found.values())) == len(plain):
            names = {number: found[number] for number in sorted(found, key=_order)}
    if len(set(names.values()) - {""}) < len(names):
        raise UserError(f"data.class_names={given} has a name twice, or an empty one")
    return names


def _order(label: str) -> tuple[int, str]:
    digits = label.lstrip("0") if label.isdecimal() else ""
    return len(digits), digits or label


def with_shared_names(source: Domain, others: Sequence[Domain]) -> tuple[Domain, list[Domain]]:
    """Domains whose classes have one name each, where a list has labels without names.

    Raises:
      UserError: if two lists name a label differently.
    """
    for other in others:
        source = _with_names_of(other, source)
    return source, [_with_names_of(source, other) for other in others]


def _with_names_of(other: Domain, domain: Domain) -> Domain:
    """A domain whose labels without names have those of another."""
    known = dict(zip(other.list_labels, other.classes, strict=False))
    names = []
    for label, name in zip(domain.list_labels, domain.classes, strict=False):
        theirs = known.get(label, name)
        if domain.is_numbered and name == label:
            # Labels that the other lacks are not its classes of that name.
            is_taken = label.isdecimal() and label not in known and label in known.values()
            name = f"label {label}" if is_taken else theirs
        elif theirs != name and not (other.is_numbered and theirs == label):
            raise UserError(
                f"label {label} is {name!r} in the list of {domain.name} and {theirs!r} in that of "
                f"{other.name}: use one numbering, or set data.class_names"
            )
        names.append(name)
    return dataclasses.replace(domain, classes=tuple(names)) if names else domain
