"""Images in several arrays or files, indexed as one array without concatenating them."""

import mmap

import numpy as np

from daaa_jax.data.types import ImageArray


class Images:
    """uint8 images `[N,H,W,3]` in consecutive parts; rows are read on access."""

    def __init__(self, *parts: ImageArray):
        """Keeps references to the parts; memory maps stay on the disk.

        Args:
          *parts: `[n,H,W,3]`, at least one.

        Raises:
          ValueError: if their images have different shapes.
        """
        flat = [p for part in parts for p in (part.parts if isinstance(part, Images) else (part,))]
        shapes = {part.shape[1:] for part in flat}
        if len(shapes) != 1:
            raise ValueError(f"images of different shapes: {sorted(shapes)}")
        self.parts: tuple[ImageArray, ...] = tuple(flat)
        self._ends = np.cumsum([len(part) for part in flat])

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, H, W, 3)`."""
        return (int(self._ends[-1]), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Type of the pixels."""
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return sum(part.nbytes for part in self.parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The images of a slice or of an array of row numbers."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners):
            here, part = owners == owner, self.parts[owner]
            result[here] = part[rows[here] - (self._ends[owner] - len(part))]
        return result

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)

    def __reduce__(self):
        # Pickling a memory map would copy its content; worker processes reopen the file instead.
        return _restored, ([_location(part) for part in self.parts],)


class Chosen:
    """Subset of images that are stored in files; rows are read on access."""

    def __init__(self, images: ImageArray, rows: np.ndarray):
        """Reads nothing yet.

        Args:
          images: the whole set, `[N,H,W,3]`.
          rows: row numbers of the subset, in order.
        """
        self._images, self._rows = images, np.asarray(rows)
        self.shape = (len(self._rows), *images.shape[1:])
        self.dtype = images.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the subset."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The images of a slice or of an array of row numbers."""
        return self._images[self._rows[rows]]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __reduce__(self):
        return Chosen, (Images(self._images), self._rows)


def chosen(images: ImageArray, rows: np.ndarray) -> ImageArray:
    """Subset of images in the order of `rows`; images stored in files are not read."""
    if hasattr(images, "chosen"):  # records
        return images.chosen(rows)
    if isinstance(images, np.memmap | Images | Chosen):
        return Chosen(images, rows)
    return images[rows]


def _location(part: ImageArray):
    if isinstance(part, np.memmap) and isinstance(part.base, mmap.mmap):  # the whole file
        return part.filename, part.dtype, "r", part.offset, part.shape
    return part


def _restored(locations) -> Images:
    parts = (np.memmap(*place) if isinstance(place, tuple) else place for place in locations)
    return Images(*parts)
