"""The classes of images, by the network that a run has adapted.

    daaa predict --workdir=runs/office-w2a IMAGE_OR_FOLDER…

Writes a CSV: file, class, the probability of each class, and, where an image could not be read, the
reason. `--overlays=DIR` also writes each image with the network's attention over it.
"""

import csv
import os
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from daaa_jax import inference
from daaa_jax.command_line import Parser
from daaa_jax.errors import UserError
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime import compilation, exit_codes

Row = tuple[Path, np.ndarray | None, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Classifies the images that are named.

    Raises:
      UserError: for anything that the user can mend.
    """
    parser = Parser("predict", __doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    parser.add_argument("--workdir", required=True, help="the working directory of a finished run")
    parser.add_argument(
        "--network",
        choices=inference.NETWORKS,
        default="selected",
        help="the adapted network chosen without labels, the last, or the source network",
    )
    parser.add_argument(
        "--out", help="the table; by default predictions.csv in --workdir; - for standard output"
    )
    parser.add_argument("--overlays", help="a folder for the images with attention over them")
    parser.add_argument(
        "--overlay_layers", help="the layers shown, a regular expression; else the aligned ones"
    )
    parser.add_argument(
        "--paired",
        action="store_true",
        help="average the posteriors of each image and of its translation into the source's style",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise UserError(f"--batch_size={options.batch_size} must be at least 1")
    options.out = options.out or str(Workdir(options.workdir).predictions)
    if Path(options.out).expanduser().is_dir():
        raise UserError(f"--out={options.out} is a folder: give a file, such as predictions.csv")
    compilation.enable_cache()
    workdir = Workdir(options.workdir)
    network = inference.load_network(workdir, options.network)
    if options.paired:
        network = inference.with_second_image(network, inference.load_generators(workdir))
    files = inference.find_images(options.images)
    rows = inference.predict(
        network,
        files,
        batch_size=options.batch_size,
        overlays=Path(options.overlays).expanduser() if options.overlays else None,
        overlay_layers=options.overlay_layers or network.about["layers"],
    )
    unreadable = write_csv(rows, network.about["classes"], options.out)
    told = f", {unreadable} of them unreadable, as their rows say" if unreadable else ""
    print(f"{len(files)} images{told}: {options.out}", file=sys.stderr)


def write_csv(rows: Iterable[Row], classes: Sequence[str], out: str) -> int:
    """Writes a table of predictions, whole or not at all.

    Args:
      rows: as `inference.predict` yields them.
      classes: names, in the order of the posteriors.
      out: the file; `-` for the standard output.

    Returns:
      How many images were unreadable.

    Raises:
      UserError: if the file cannot be written.
    """
    if out == "-":
        return _write(rows, classes, sys.stdout)
    path = Path(out).expanduser()
    is_device = path.exists() and not path.is_file()  # /dev/null, a pipe: not to be replaced
    path = path if is_device else path.resolve()  # a link stays one
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = path if is_device else temporary
        with place.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            unreadable = _write(rows, classes, file)
        if not is_device:
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return unreadable


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
    """This module, which stands where `daaa_jax.predict` is looked for, is `api.predict` too."""

    def __call__(self, *arguments: Any) -> np.ndarray:
        from daaa_jax import api

        return api.predict(*arguments)


sys.modules[__name__].__class__ = _Callable


def command() -> None:
    """The command; see `exit_codes.run` for how it ends."""
    try:
        exit_codes.run(main)
    except BrokenPipeError:  # --out=- | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    command()
