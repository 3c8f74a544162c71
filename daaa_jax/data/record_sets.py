"""A domain stored as records, with file names, classes and labels; local or on object storage.

The folder contains `index.json`, and for each file of records a JSON file of the same name that
lists its images.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from daaa_jax.data import cache, folders, photos, records
from daaa_jax.errors import UserError, reading
from daaa_jax.runtime.files import expanded, read_json, replacing, settings_hash, write_json
from daaa_jax.runtime.progress import Progress

INDEX = "index.json"  # written last: without it the set is not complete
BEGUN = "begun.json"  # written first: which images are converted, and how
_FORMAT = "daaa_jax images 1"
_AT_ONCE = 64  # images read at a time
_ENTRIES = {"format": str, "size": int, "classes": list, "shards": list}  # of the index


def write_index(
    folder: Path,
    classes: Sequence[str],
    size: int,
    shards: Mapping[str, Any],
    ranges: photos.ValueRanges,
) -> None:
    """Marks a set complete; `shards` are the contents of its JSON files by name."""
    entries = [
        {"name": name, "count": len(content["files"])}
        | {key: content[key] for key in ("sha256", "bytes")}
        for name, content in shards.items()
    ]
    index = {"format": _FORMAT, "size": size, "classes": list(classes), "shards": entries}
    index |= {"ranges": ranges} if ranges else {}
    write_json(folder / INDEX, index)


def is_remote(place: str) -> bool:
    """Whether `place` is an address of object storage, such as `gs://bucket/amazon`."""
    return "://" in place


def find(place: str) -> folders.Decoded | None:
    """The set in a folder or at an address; None if the folder contains no set.

    A set on object storage is copied to the cache folder first, once.

    Raises:
      UserError: if the set is incomplete or damaged, or cannot be fetched.
    """
    folder = _local(place)
    if not os.path.isfile(folder / INDEX):
        if os.path.isfile(folder / BEGUN):
            raise UserError(f"{folder}: its conversion is not finished, rerun `daaa convert`")
        return None
    index = read_json(folder / INDEX)
    is_ours = isinstance(index, dict) and "format" in index
    if not is_ours and not (folder / BEGUN).exists():  # an unrelated file beside photos
        return None
    index = _checked(index, folder / INDEX, _ENTRIES)
    names: list[str] = []
    labels: list[int] = []
    for shard in index["shards"]:
        path = folder / f"{shard['name']}.json"
        content = _checked(read_json(path), path, {"files": list, "labels": list})
        names += content["files"]
        labels += content["labels"]
    if not names:
        raise UserError(f"{folder} holds no image: none of the photos could be read; convert again")
    shards = [(folder / f"{s['name']}{records.SUFFIX}", s["count"]) for s in index["shards"]]
    # Sets converted before names were normalised to NFC may have another order.
    written = [folders.composed(name) for name in index["classes"]]
    classes = tuple(sorted(written))
    if classes:
        labels = [classes.index(written[label]) for label in labels]
    images = records.read(shards, (index["size"], index["size"], 3), settings_hash(index))
    if len(names) != len(images) or len(labels) != len(images):
        raise UserError(f"{folder}: its lists do not agree with {INDEX}; convert the photos again")
    about = Path(os.path.abspath(place)).name, place, classes, np.array(labels, np.int32)
    files = tuple(map(PurePosixPath, names))
    return folders.Decoded(*about, files, images, index.get("ranges", {}))


def damaged(found: folders.Decoded) -> list[str]:
    """Lists the files of records whose content has changed; reads all images of the set."""
    folder = _local(str(found.folder))
    bad, first = [], 0
    for shard in read_json(folder / INDEX)["shards"]:
        digest, last = hashlib.sha256(), first + shard["count"]
        try:
            for start in range(first, last, _AT_ONCE):
                digest.update(found.images[start : min(start + _AT_ONCE, last)].tobytes())
        except UserError as error:
            bad.append(str(error))
        else:
            if digest.hexdigest() != shard["sha256"]:
                bad.append(f"{folder / shard['name']}{records.SUFFIX} holds other images")
        first = last
    return bad


def _checked(content: Any, where: object, entries: Mapping[str, type]) -> dict[str, Any]:
    """The content of a JSON file; raises a `UserError` if it lacks entries."""
    found = content if isinstance(content, dict) else {}
    is_whole = all(isinstance(found.get(name), kind) for name, kind in entries.items())
    if not is_whole or found.get("format", _FORMAT) != _FORMAT:
        raise UserError(f"{where} is not what `daaa convert` writes: convert the photos again")
    for shard in found.get("shards", ()):
        _checked(shard, where, {"name": str, "count": int, "sha256": str, "bytes": int})
    return found


def _local(place: str) -> Path:
    """Folder of a set; one on object storage is copied to the cache folder, unless it is there."""
    if not is_remote(place):
        return expanded(place)
    import fsspec

    with reading(place, "check the address, your credentials and disk space"):
        files, root = fsspec.core.url_to_fs(place)
        content = files.cat_file(f"{root}/{INDEX}")
        index = _checked(json.loads(content), f"{place}/{INDEX}", _ENTRIES)
        folder = cache.folder() / "records" / hashlib.sha256(content).hexdigest()[:24]
        sizes = {f"{s['name']}{records.SUFFIX}": s["bytes"] for s in index["shards"]}
        sizes |= {f"{s['name']}.json": None for s in index["shards"]}
        with Progress(f"fetch {Path(place).name}", len(sizes)) as progress:
            for done, (name, size) in enumerate(sizes.items(), start=1):
                if not (folder / name).exists():
                    _fetch_file(files, f"{root}/{name}", folder / name, size)
                progress.update(done, {})
        if not (folder / INDEX).exists():  # the folder's name is the index's checksum
            with replacing(folder / INDEX) as temporary:
                temporary.write_bytes(content)
    return folder


def _fetch_file(files: Any, origin: str, path: Path, size: int | None) -> None:
    with replacing(path) as temporary:
        files.get_file(origin, str(temporary))
        if size is not None and temporary.stat().st_size != size:
            raise ValueError(f"{origin} has {temporary.stat().st_size} bytes, expected {size}")
