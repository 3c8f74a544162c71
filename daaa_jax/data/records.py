"""Images in ArrayRecord files, with random access from any number of processes.

A record contains an image's uint8 pixels, row by row; ArrayRecord compresses it losslessly.
"""

import contextlib
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from daaa_jax.data.images import Images, LazyImages
from daaa_jax.errors import UserError, counted, reading, writable
from daaa_jax.runtime.files import replacing

SUFFIX = ".array_record"
# Rows are read one by one, so each is its own group. Higher levels of zstd make photos 6 % smaller
# and writing slower.
_OPTIONS = "group_size:1,zstd:1"


def write(path: Path, images: Iterable[np.ndarray]) -> int:
    """Writes a file of records, completely or not at all.

    Args:
      path: the file.
      images: uint8 `[H,W,3]` each, consumed one at a time.

    Returns:
      Number of images.

    Raises:
      UserError: if it cannot be written, for instance because the disk is full.
    """
    # A slow import, which commands without records do not need.
    from array_record.python.array_record_module import ArrayRecordWriter

    count = 0
    with replacing(path) as temporary:
        with writable(path, RuntimeError):
            writer = ArrayRecordWriter(str(temporary), _OPTIONS)
        try:
            for image in images:
                with writable(path, RuntimeError):
                    writer.write(np.ascontiguousarray(image).tobytes())
                count += 1
        finally:
            with writable(path, RuntimeError):
                writer.close()
    return count


def drop_halves(folder: Path) -> None:
    """Removes the temporary files of killed writes from a folder."""
    for temporary in folder.glob(f".*{SUFFIX}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


class RecordFile(LazyImages):
    """uint8 images `[N,H,W,3]` in a file of records; pickles its name, not its content."""

    def __init__(self, path: Path, shape: Sequence[int]):
        """Opens nothing yet; `shape` is `(N, H, W, 3)`."""
        self.path, self.shape = path, tuple(shape)

    def read(self, rows):
        with reading(self.path, "restore it, or make it again"):
            content = b"".join(self.reader.read([int(row) for row in rows]))
            return np.frombuffer(content, np.uint8).reshape(len(rows), *self.shape[1:])

    def __reduce__(self):
        return RecordFile, (self.path, self.shape)

    @functools.cached_property
    def reader(self):
        """The opened file; a `UserError` if it cannot be read."""
        from array_record.python.array_record_module import ArrayRecordReader

        with reading(self.path, "restore it, or make it again"):
            # Access is random: nothing is read ahead.
            return ArrayRecordReader(
                str(self.path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15
            )


def read(files: Sequence[tuple[Path, int]], image_shape: Sequence[int], sha256: str) -> Images:
    """Images in several files; checks that each exists and contains the expected number.

    Args:
      files: the files, each with its number of images.
      image_shape: `(H, W, 3)`.
      sha256: identifies the content of the images without reading them.

    Raises:
      UserError: names the first file that does not.
    """
    parts = [RecordFile(Path(path), (count, *image_shape)) for path, count in files]
    for part in parts:
        if (found := part.reader.num_records()) != len(part):
            what = f"{part.path} holds {counted(found, 'image')}, expected {len(part)}"
            raise UserError(f"{what}: missing or damaged, convert the photos again")
    return Images(*parts, sha256=sha256)
