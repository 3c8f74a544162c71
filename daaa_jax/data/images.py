"""Images in several arrays or files, as one array that is never made."""

import mmap

import numpy as np


class Images:
    """uint8 images `[N,H,W,3]`: one part after another, rows gathered when they are asked for."""

    def __init__(self, *parts: np.ndarray):
        """Takes the parts as they are; memory maps stay on the disk.

        Args:
          *parts: arrays `[n,H,W,3]` or `Images`, at least one.

        Raises:
          ValueError: if their images have different shapes.
        """
        flat = [p for part in parts for p in (part.parts if isinstance(part, Images) else (part,))]
        shapes = {part.shape[1:] for part in flat}
        if len(shapes) != 1:
            raise ValueError(f"images of different shapes: {sorted(shapes)}")
        self.parts: tuple[np.ndarray, ...] = tuple(flat)
        self._ends = np.cumsum([len(part) for part in flat])

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, H, W, 3)`."""
        return (int(self._ends[-1]), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels."""
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
        # A memory map would be pickled with all that is in its file; worker processes open it anew.
        return _restored, ([_location(part) for part in self.parts],)


def _location(part: np.ndarray):
    whole_file = isinstance(part, np.memmap) and isinstance(part.base, mmap.mmap)
    return (part.filename, part.dtype, part.shape, part.offset) if whole_file else part


def _restored(locations) -> Images:
    return Images(
        *(
            np.memmap(place[0], place[1], "r", place[3], place[2])
            if isinstance(place, tuple)
            else place
            for place in locations
        )
    )
