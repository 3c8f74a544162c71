"""Peak memory of converting and reading large datasets.

    python -m benchmarks.memory [--counts=10000,100000] [--size=96]

For each count, one process converts a folder of that many photos (hard links to 500 different ones)
to records, and another draws random batches from them, as a streaming stage does. Apart from lists
of file names, memory should not grow with the count: only pixels of current batches are in memory.
"""

import argparse
import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np

_DIFFERENT = 500
_BATCH = 64


def make_folder(folder: Path, count: int, size: int) -> None:
    """Writes photos of coarse random patches in ten classes; most are hard links."""
    from PIL import Image

    generator = np.random.default_rng(0)
    originals = []
    for number in range(min(count, _DIFFERENT)):
        coarse = generator.integers(0, 256, (4, 4, 3), np.uint8)
        path = folder / f"original-{number}.jpg"
        Image.fromarray(coarse).resize((size * 4 // 3, size), Image.Resampling.BICUBIC).save(path)
        originals.append(path)
    for number in range(count):
        place = folder / "photos" / f"class {number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        os.link(originals[number % len(originals)], place / f"{number}.jpg")


def convert(folder: Path, out: Path, size: int) -> None:
    """Runs `python -m daaa_jax.convert`."""
    from daaa_jax.convert import main

    main([str(folder), f"--out={out}", f"--size={size}"])


def read(records: Path, steps: int) -> None:
    """Streams batches to the device."""
    import jax

    from configs import folder
    from daaa_jax.data import record_sets
    from daaa_jax.data.batches import IndexStream
    from daaa_jax.runtime import mesh as meshes
    from daaa_jax.training.feed import Feed

    config = folder.get_config()
    config.run.update(resident_mib=0, workers=0)
    images = record_sets.find(str(records)).images
    stream = IndexStream(len(images), _BATCH, 0, "memory")
    feed = Feed(
        (images,),
        _Rows(stream),
        steps=steps,
        mesh=meshes.data_mesh(jax.devices()[:1]),
        settings=config.run,
    )
    for step in range(steps):
        jax.block_until_ready(feed.at(step))


class _Rows:
    def __init__(self, stream):
        self.stream = stream

    def __call__(self, step: int):
        from daaa_jax.data.batches import Rows

        return Rows(self.stream.at(step))


def peak(function, *arguments) -> float:
    """Peak memory in MiB of a new process that calls a function."""
    return returned(_measured, function, *arguments)


def returned(function, *arguments):
    """Calls a function in a new process and returns its result."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        what = " ".join(part.__name__ for part in (function, *arguments) if callable(part))
        raise SystemExit(f"{what} failed, see above") from error
    finally:
        process.join()


def _answer(answer, function, *arguments) -> None:
    answer.send(function(*arguments))


def own_peak() -> float:
    """Peak memory of this process in MiB.

    Not from `getrusage`, which on Linux includes the process that it was forked from.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kib) / 1024


def _measured(function, *arguments) -> float:
    function(*arguments)
    return own_peak()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="10000,100000", help="numbers of images")
    parser.add_argument("--size", type=int, default=96, help="side of the images, pixels")
    parser.add_argument("--steps", type=int, default=500, help=f"batches of {_BATCH} to read")
    options = parser.parse_args()
    print("| images | pixels, MiB | converting, MiB | reading, MiB |\n|" + " --- |" * 4)
    for count in map(int, options.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            make_folder(folder, count, options.size)
            converting = peak(convert, folder / "photos", folder / "records", options.size)
            reading = peak(read, folder / "records", options.steps)
            pixels = count * options.size**2 * 3 / 2**20
            print(f"| {count:,} | {pixels:,.0f} | {converting:.0f} | {reading:.0f} |", flush=True)


if __name__ == "__main__":
    main()
