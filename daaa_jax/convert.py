"""Converts a folder of photos to a few large files, for domains larger than memory.

    daaa convert FOLDER --out=DIR [--size=256]

Use `DIR` in place of a folder of photos: `--config.data.source=DIR`. It can be copied unchanged to
object storage and read from there: `--config.data.source=gs://…`. Rerun the same command to resume.
"""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.convert")

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from daaa_jax.command_line import Parser, given_path
from daaa_jax.data import folders, photos, record_sets, records
from daaa_jax.errors import UserError, counted, readable, writable
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime.files import checksum, expanded, output, read_json, write_json
from daaa_jax.runtime.progress import Progress


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts one folder.

    Raises:
      UserError: if the folder is not a domain, or a file cannot be read or written.
    """
    parser = Parser("convert", __doc__)
    parser.add_argument(
        "folder", type=given_path, help="folder of photos: FOLDER/<class>/*.jpg, or FOLDER/*.jpg"
    )
    parser.add_argument("--out", type=given_path, required=True, help="folder, a new data.source")
    parser.add_argument(
        "--size", type=int, default=256, help="resize to squares of so many pixels (256)"
    )
    parser.add_argument("--shard", type=int, default=1024, help="images per file (1024)")
    parser.add_argument(
        "--on_error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at an image that cannot be read (default), or leave it out",
    )
    options = parser.parse_args(arguments)
    for name in ("size", "shard"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1")
    with writable(f"--out={options.out}"):
        convert(options.folder, options.out, options.size, options.shard, options.on_error)


def convert(folder: str | Path, out: str | Path, size: int, shard: int, on_error: str) -> None:
    """Writes a folder of photos as records; files that are already written are kept.

    Only a few images per thread are in memory at a time.

    Args:
      folder: as for `folders.find`.
      out: the folder for the records.
      size: height and width to resize images to, pixels.
      shard: number of images per file.
      on_error: for unreadable images: `raise` an error that lists them all, or `skip` them.

    Raises:
      UserError: if `out` holds anything else, lies in `folder` or is being written to, or images
        cannot be read.
    """
    out = output("--out", out, [expanded(folder)])
    with readable(folder):
        listing = folders.find(folder)
        identity = folders.identity(listing, size)
    earlier = {"images": identity, "size": size, "shard": shard}  # as earlier versions wrote
    # Labels are not of the images alone: a class folder without images changes them.
    what = earlier | {"classes": list(listing.classes), "labels": checksum(listing.labels)}
    started = out / record_sets.BEGUN
    if started.exists() and read_json(started) not in (what, earlier):
        raise UserError(
            f"--out={out} holds records of other images or classes, or of another --size or "
            "--shard: give another folder, or remove it"
        )
    if not started.exists() and (out.is_file() or any(out.glob("[!.]*"))):
        raise UserError(f"--out={out} is not an empty folder: give a new one")
    with Workdir(out).locked("--out"):
        write_json(started, what)
        records.drop_halves(out)
        _write(listing, out, size, shard, on_error)


def _write(listing: folders.Listing, out: Path, size: int, shard: int, on_error: str) -> None:
    """Writes the records and the index."""
    ranges = photos.value_ranges(listing.paths)
    starts = range(0, len(listing.paths), shard)
    names = [f"images-{number:05d}" for number in range(len(starts))]
    with Progress(f"convert {listing.name}", len(listing.paths)) as progress:
        for name, start in zip(names, starts, strict=True):
            stop = min(start + shard, len(listing.paths))
            if not (out / f"{name}.json").exists():
                _write_shard(out / name, listing.chosen(np.arange(start, stop)), size, ranges)
            progress.update(stop, {})
    shards = {name: read_json(out / f"{name}.json") for name in names}
    bad = [*listing.unreadable]
    for content in shards.values():
        bad += [(listing.folder / file, reason) for file, reason in content["unreadable"]]
    if bad and on_error != "skip":
        remedy = "repair, and convert to a new folder, or rerun with --on_error=skip"
        raise folders.unreadable("image", bad, remedy)
    written = sum(len(content["files"]) for content in shards.values())
    if not written:
        raise UserError(f"no image in {listing.folder} can be read ({bad[0][1]})")
    record_sets.write_index(out, listing.classes, size, shards, ranges)
    left_out = f", {len(bad)} unreadable left out" if bad else ""
    print(f"{counted(written, 'image')}{left_out}: {out}", flush=True)


def _write_shard(
    path: Path, listing: folders.Listing, size: int, ranges: photos.ValueRanges
) -> None:
    """Writes a file of records, then a JSON file on its content; both are `path` with a suffix."""
    files, labels, unreadable = [], [], []
    digest = hashlib.sha256()

    def images() -> Iterator[np.ndarray]:
        decoded = photos.read_in_order(listing.paths, size, ranges)
        for file, label, image in zip(listing.files, listing.labels, decoded, strict=True):
            if isinstance(image, str):
                unreadable.append([str(file), image])
                continue
            files.append(str(file))
            labels.append(int(label))
            digest.update(image.tobytes())
            yield image

    written = path.with_suffix(records.SUFFIX)
    records.write(written, images())
    content = {"files": files, "labels": labels, "unreadable": unreadable}
    content |= {"sha256": digest.hexdigest(), "bytes": written.stat().st_size}
    write_json(path.with_suffix(".json"), content)
