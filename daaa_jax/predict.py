"""Classifies images with the network of a finished run.

    daaa predict --workdir=runs/office-w2a IMAGE_OR_FOLDER…

Writes a CSV with one row per file: file, class, the probability of each class, and an error if it
could not be read. `--overlays=DIR` also writes each image with an attention overlay.
"""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.predict")

import contextlib
import csv
import os
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from daaa_jax import inference
from daaa_jax.command_line import Parser, given_path
from daaa_jax.data import image_lists, photos
from daaa_jax.errors import UserError, check_pattern, counted, writable
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime import compilation, error_log, files, jax_settings

Row = tuple[Path, np.ndarray | None, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Classifies the images given on the command line.

    Raises:
      UserError: for any error that the user can fix.
    """
    parser = Parser("predict", __doc__)
    parser.add_argument(
        "images",
        nargs="+",
        type=given_path,
        help="images, folders, or list files with the path of an image on each line",
    )
    parser.add_list_flags()
    parser.add_network_flags(inference.NETWORKS, default="selected")
    parser.add_argument(
        "--out", help="CSV file; by default predictions.csv in --workdir; - for standard output"
    )
    parser.add_argument(
        "--overlays", help="folder for copies of the images that show where the network attends"
    )
    parser.add_argument(
        "--overlay_layers",
        help="regular expression for the names of the layers to show, such as conv3; by default "
        "those that training aligns (adapt.layers); if none matches, the error lists all names",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch (64)")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise UserError(f"--batch_size={options.batch_size} must be at least 1")
    check_pattern("--overlay_layers", options.overlay_layers or "")
    workdir = Workdir(options.workdir)
    error_log.use(workdir.path)
    options.out = options.out or str(workdir.predictions)
    given = [*map(Path, options.images), *inference.photos_of(workdir)]
    out = files.output("--out", options.out, filter(os.path.isfile, given))
    if out.is_dir() or (out.is_file() and photos.starts_as_image(out)):
        what = "a folder" if out.is_dir() else "an image"
        raise UserError(f"--out={options.out} is {what}: give a file, such as predictions.csv")
    overlays = options.overlays and files.output("--overlays", options.overlays, given)
    root = options.root and str(files.expanded(options.root))
    images = inference.find_files(options.images, image_lists.Options(root, options.path_prefix))
    compilation.enable_cache()
    jax_settings.set_supported()
    jax_settings.check_devices()
    network = inference.load_network(workdir, options.network, options.paired)
    rows = inference.predict(
        network,
        images,
        batch_size=options.batch_size,
        overlays=overlays or None,
        overlay_layers=options.overlay_layers or network.about["layers"],
    )
    unreadable = write_csv(rows, network.about["classes"], options.out)
    if unreadable == len(images):
        raise UserError(f"no file of {unreadable} could be read: see column error, {options.out}")
    failed = f", {unreadable} unreadable (see column error)" if unreadable else ""
    print(f"{counted(len(images), 'file')}{failed}: {options.out}", file=sys.stderr)


def write_csv(rows: Iterable[Row], classes: Sequence[str], out: str) -> int:
    """Writes predictions as CSV, atomically.

    Args:
      rows: as yielded by `inference.predict`.
      classes: class names, in the order of the posteriors.
      out: the file; `-` for standard output.

    Returns:
      Number of unreadable images.

    Raises:
      UserError: if the file cannot be written.
    """
    if out == "-":
        return _write(rows, classes, sys.stdout)
    path = files.expanded(out)
    is_device = path.exists() and not path.is_file()  # /dev/null or a pipe: not replaced
    with (
        writable(f"--out={out}"),
        # Resolving keeps symbolic links.
        contextlib.nullcontext(path) if is_device else files.replacing(path.resolve()) as place,
        place.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        return _write(rows, classes, file)


def _write(rows: Iterable[Row], classes: Sequence[str], file: TextIO) -> int:
    writer = csv.writer(file)
    writer.writerow(["file", "class", *(f"p({name})" for name in classes), "error"])
    unreadable = 0
    for path, probabilities, reason in rows:
        if probabilities is None:
            unreadable += 1
            writer.writerow([path, "", *[""] * len(classes), reason])
        else:
            best = classes[int(probabilities.argmax())]
            writer.writerow([path, best, *(f"{p:.6f}" for p in probabilities), ""])
    return unreadable


class _Callable(types.ModuleType):
    """Makes this module callable: `daaa_jax.predict(...)` is `api.predict(...)`."""

    def __call__(self, *arguments: Any, **named: Any) -> np.ndarray:
        from daaa_jax import api

        return api.predict(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
