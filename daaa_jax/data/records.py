"""Images in ArrayRecord files: any row without the others, from as many processes as need be.

A record is an image's pixels, uint8, row by row; ArrayRecord compresses it without loss.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from daaa_jax.errors import UserError

SUFFIX = ".array_record"
# Rows are read one by one, so each is a group of its own. More compression than zstd's least makes
# photos 6 % smaller and writing slower.
_OPTIONS = "group_size:1,zstd:1"
_AT_ONCE = 256  # rows gathered at a time where all are


def write(path: Path, images: Iterable[np.ndarray]) -> int:
    """Writes a file of records, whole or not at all.

    Args:
      path: the file.
      images: uint8 `[H,W,3]` each, taken one after another.

    Returns:
      How many there were.

    Raises:
      UserError: if it cannot be written, for instance because the disk is full.
    """
    # Imported here, as it takes time that commands without records spare.
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with _told_of(path):
            writer = ArrayRecordWriter(str(temporary), _OPTIONS)
        try:
            for image in images:
                with _told_of(path):
                    writer.write(np.ascontiguousarray(image).tobytes())
                count += 1
        finally:
            with _told_of(path):
                writer.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """What the writer says of a file that it cannot write, as one line."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"{path} cannot be written: {_line(error)}") from error


def drop_halves(folder: Path) -> None:
    """Removes what killed writes have left in a folder."""
    for half in folder.glob(f".*{SUFFIX}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            half.unlink()


class Records:
    """uint8 images `[N,H,W,3]` in files of records, or some of them; rows are read when asked for.

    May be a part of `images.Images`, and is pickled by the names of its files.
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
          files: each with its number of images.
          image_shape: `(H, W, 3)`.
          sha256: tells the content of these images, in place of reading them to find out.
          rows: which images, in which order; by default all.
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
        """The images of some rows, in that order; none is read."""
        rows = np.asarray(rows)
        whole = rows if self._rows is None else self._rows[rows]
        which = np.ascontiguousarray(rows, "<i8").tobytes()
        sha256 = hashlib.sha256(self.sha256.encode() + which).hexdigest()
        return Records(self._files, self.shape[1:], sha256, whole)

    def check(self) -> None:
        """Makes sure that every file is there and holds as many images as it should.

        Raises:
          UserError: names the first that does not.
        """
        for number, (path, count) in enumerate(self._files):
            if (found := self._reader(number).num_records()) != count:
                raise UserError(f"{path} holds {found} images, expected {count}")

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
                raise UserError(f"{path} cannot be read ({_line(error)}): it is damaged") from error
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
                # Rows are asked for at random: nothing is read ahead.
                self._readers[number] = ArrayRecordReader(
                    str(path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15
                )
            except (RuntimeError, ValueError, OSError) as error:
                raise UserError(f"{path} cannot be read: {_line(error)}") from error
        return self._readers[number]


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
