"""Two folders of photos, whose files can be changed at random: used by `benchmarks.faults`."""

import io
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image

DOMAINS = ("a", "b")
CLASSES = ("mug", "pen", "stapler")
_SIDES = 640, 480
_DIFFERENT = 12
_FEWEST = 20  # photos of a class, below which none is removed


class ChangingPhotos:
    """The domains `a` and `b` below a folder.

    Attributes:
      changes: number of changes by kind.
    """

    def __init__(self, folder: Path, seed: int, each: int = 120):
        """Writes the photos.

        Args:
          folder: must not exist.
          seed: of the photos' pixels, and of the changes.
          each: photos of each class in each domain.
        """
        self.folder, self._chance = folder, random.Random(seed)
        self._contents = _jpegs(seed)
        self._cut: set[Path] = set()
        self._added = 0
        self.changes = dict.fromkeys(("replaced", "rewritten", "cut", "removed", "added"), 0)
        for domain in DOMAINS:
            for name in CLASSES:
                place = folder / domain / name
                place.mkdir(parents=True)
                for number in range(each):
                    (place / f"{number:04}.jpg").write_bytes(self._content())

    def change(self) -> None:
        """Replaces, rewrites, cuts, removes or adds one photo of a random class."""
        place = self.folder / self._chance.choice(DOMAINS) / self._chance.choice(CLASSES)
        photos = sorted(place.iterdir())
        path = self._chance.choice(photos)
        kind = self._chance.choice(list(self.changes))
        if kind == "removed" and len(photos) <= _FEWEST:
            kind = "added"
        self.changes[kind] += 1
        if kind == "replaced":
            other = self.folder / "new"
            other.write_bytes(self._content())
            other.replace(path)
        elif kind == "rewritten":  # in place: a reader may see a part of it
            path.write_bytes(self._content())
        elif kind == "cut":
            os.truncate(path, self._chance.randrange(path.stat().st_size + 1))
        elif kind == "removed":
            path.unlink()
        else:
            self._added += 1
            path = place / f"{self._chance.randrange(1000):04}-{self._added}.jpg"
            path.write_bytes(self._content())
        (self._cut.add if kind == "cut" else self._cut.discard)(path)

    def repair(self) -> None:
        """Replaces photos that are cut by whole ones."""
        for path in self._cut:
            path.write_bytes(self._content())
        self._cut.clear()

    def _content(self) -> bytes:
        return self._chance.choice(self._contents)


def _jpegs(seed: int) -> list[bytes]:
    """Photos of coarse random patches."""
    draws, contents = np.random.default_rng(seed), []
    for _ in range(_DIFFERENT):
        coarse = Image.fromarray(draws.integers(0, 256, (24, 32, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize(_SIDES, Image.Resampling.BICUBIC).save(file, format="jpeg")
        contents.append(file.getvalue())
    return contents
