"""Images in several arrays or files, indexed as one array without concatenating them."""

import hashlib
import math
import mmap

import numpy as np

_AT_ONCE = 256  # rows read at a time by `__array__`


class LazyImages:
    """uint8 images `[N,H,W,3]`, indexed as an array; subclasses implement `read`.

    Attributes:
      sha256: identifies the content without reading it; may be empty.
    """

    dtype = np.dtype(np.uint8)
    shape: tuple[int, ...]
    sha256 = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The images of a slice or of an array of row numbers."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        return self.read(rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        result = np.empty(self.shape, self.dtype)
        for first in range(0, len(self), _AT_ONCE):
            result[first : first + _AT_ONCE] = self[first : first + _AT_ONCE]
        return result.astype(dtype or self.dtype, copy=False)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images numbered in `rows`."""
        raise NotImplementedError


# Images, uint8 `[N,H,W,3]`, in memory or in files that are read on access.
ImageArray = np.ndarray | LazyImages


class Images(LazyImages):
    """uint8 images `[N,H,W,3]` in consecutive parts; rows are read on access."""

    def __init__(self, *parts: ImageArray, sha256: str = ""):
        """Keeps references to the parts; memory maps stay on the disk.

        Args:
          *parts: `[n,H,W,3]`, at least one.
          sha256: see `LazyImages`.

        Raises:
          ValueError: if their images have different shapes.
        """
        flat = [p for part in parts for p in (part.parts if isinstance(part, Images) else (part,))]
        shapes = {part.shape[1:] for part in flat}
        if len(shapes) != 1:
            raise ValueError(f"images of different shapes: {sorted(shapes)}")
        self.parts: tuple[ImageArray, ...] = tuple(flat)
        self.sha256 = sha256
        self._ends = np.cumsum([len(part) for part in flat])
        self.shape = (int(self._ends[-1]), *flat[0].shape[1:])

    def read(self, rows):
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners):
            here, part = owners == owner, self.parts[owner]
            result[here] = part[rows[here] - (self._ends[owner] - len(part))]
        return result

    def __reduce__(self):
        # Pickling a memory map would copy its content; worker processes reopen the file instead.
        return _restored, ([_location(part) for part in self.parts], self.sha256)


class Chosen(LazyImages):
    """Subset of images that are stored in files; rows are read on access."""

    def __init__(self, images: LazyImages, rows: np.ndarray):
        """Reads nothing yet.

        Args:
          images: the whole set, `[N,H,W,3]`.
          rows: row numbers of the subset, in order.
        """
        self._images, self._rows = images, np.asarray(rows)
        self.shape = (len(self._rows), *images.shape[1:])
        if images.sha256:
            which = np.ascontiguousarray(rows, "<i8").tobytes()
            self.sha256 = hashlib.sha256(images.sha256.encode() + which).hexdigest()

    def read(self, rows):
        return self._images[self._rows[rows]]


def chosen(images: ImageArray, rows: np.ndarray) -> ImageArray:
    """Subset of images in the order of `rows`; images stored in files are not read."""
    images = Images(images) if isinstance(images, np.memmap) else images
    return Chosen(images, rows) if isinstance(images, LazyImages) else images[rows]


def _location(part: ImageArray):
    if isinstance(part, np.memmap) and isinstance(part.base, mmap.mmap):  # the whole file
        return part.filename, part.dtype, "r", part.offset, part.shape
    return part


def _restored(locations, sha256: str) -> Images:
    parts = (np.memmap(*place) if isinstance(place, tuple) else place for place in locations)
    return Images(*parts, sha256=sha256)
