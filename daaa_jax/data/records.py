"""Images in ArrayRecord files, with random access from any number of processes.

A record contains an image's uint8 pixels, row by row; ArrayRecord compresses it losslessly.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from daaa_jax.errors import UserError, counted, first_line
from daaa_jax.runtime.files import replacing

SUFFIX = ".array_record"
# Rows are read one by one, so each is its own group. Higher levels of zstd make photos 6 % smaller
# and writing slower.
_OPTIONS = "group_size:1,zstd:1"
_AT_ONCE = 256  # rows read at a time by `__array__`


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
        with _as_user_error(path):
            writer = ArrayRecordWriter(str(temporary), _OPTIONS)
        try:
            for image in images:
                with _as_user_error(path):
                    writer.write(np.ascontiguousarray(image).tobytes())
                count += 1
        finally:
            with _as_user_error(path):
                writer.close()
    return count


@contextlib.contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    """Turns an error of the writer into a `UserError` of one line."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"{path} cannot be written: {first_line(error)}") from error


def drop_halves(folder: Path) -> None:
    """Removes the temporary files of killed writes from a folder."""
    for temporary in folder.glob(f".*{SUFFIX}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


class Records:
    """uint8 images `[N,H,W,3]` in files of records, or a subset; rows are read on access.

    Can be a part of `images.Images`. Pickles the names of the files, not their content.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        image_shape: Sequence[int],
        sha256: str,
        rows: np.ndarray | None = None,
    ):
        """Opens nothing yet.

        Args:
          files: the files, each with its number of images.
          image_shape: `(H, W, 3)`.
          sha256: identifies the content of the images without reading them.
          rows: row numbers of a subset, in order; by default all.
        """
        self._files = [(Path(path), int(count)) for path, count in files]
        self._ends = np.cumsum([count for _, count in self._files])
        self._rows = None if rows is None else np.asarray(rows)
        self._readers: list = [None] * len(self._files)
        count = int(self._ends[-1]) if self._rows is None else len(self._rows)
        self.shape = (count, *map(int, image_shape))
        self.sha256 = sha256

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def chosen(self, rows: np.ndarray) -> "Records":
        """Subset of the images in the order of `rows`; reads nothing."""
        rows = np.asarray(rows)
        whole = rows if self._rows is None else self._rows[rows]
        which = np.ascontiguousarray(rows, "<i8").tobytes()
        sha256 = hashlib.sha256(self.sha256.encode() + which).hexdigest()
        return Records(self._files, self.shape[1:], sha256, whole)

    def check(self) -> None:
        """Checks that every file exists and contains the expected number of images.

        Raises:
          UserError: names the first file that does not.
        """
        for number, (path, count) in enumerate(self._files):
            if (found := self._reader(number).num_records()) != count:
                raise UserError(f"{path} holds {counted(found, 'image')}, expected {count}")

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The images of a slice or of an array of row numbers."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows) if self._rows is None else self._rows[rows]
        result = np.empty((len(rows), *self.shape[1:]), np.uint8)
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            path, count = self._files[owner]
            wanted = rows[here] - (self._ends[owner] - count)
            try:
                records = self._reader(owner).read([int(row) for row in wanted])
                for place, record in zip(here, records, strict=True):
                    result[place] = np.frombuffer(record, np.uint8).reshape(self.shape[1:])
            except (RuntimeError, ValueError, IndexError) as error:
                raise UserError(
                    f"{path} cannot be read ({first_line(error)}): it is damaged"
                ) from error
        return result

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        result = np.empty(self.shape, np.uint8)
        for first in range(0, len(self), _AT_ONCE):
            result[first : first + _AT_ONCE] = self[first : first + _AT_ONCE]
        return result.astype(dtype or np.uint8, copy=False)

    def __reduce__(self):
        return Records, (self._files, self.shape[1:], self.sha256, self._rows)

    def _reader(self, number: int):
        if self._readers[number] is None:
            from array_record.python.array_record_module import ArrayRecordReader

            path, _ = self._files[number]
            try:
                # Access is random: nothing is read ahead.
                self._readers[number] = ArrayRecordReader(
                    str(path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15
                )
            except (RuntimeError, ValueError, OSError) as error:
                raise UserError(f"{path} cannot be read: {first_line(error)}") from error
        return self._readers[number]
