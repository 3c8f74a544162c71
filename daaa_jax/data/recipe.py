"""The recipe of MNIST-M (Ganin et al., 2016): digits blended with patches of colour photos.

The paper's formula is |patch - digit|. In the published images the digit is binary, as comparing
them with MNIST by index shows: every pixel above 0 turns the patch into its full negative.
"""

from collections.abc import Sequence

import numpy as np


def blend(digits: np.ndarray, photos: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Takes the absolute difference of each digit and a random patch of a random photo.

    Args:
      digits: grey or RGB, uint8 `[N,H,W]` or `[N,H,W,3]`.
      photos: RGB, uint8 `[h,w,3]` each, at least as large as a digit.
      seed: of the patches; the same photos and seed give the same images on every machine.

    Returns:
      uint8 `[N,H,W,3]`.

    Raises:
      ValueError: if there is no photo, or one is smaller than a digit.
    """
    height, width = digits.shape[1:3]
    if not photos or any(p.shape[0] < height or p.shape[1] < width for p in photos):
        raise ValueError(f"the recipe needs photos of at least {height}x{width} pixels")
    generator = np.random.default_rng(seed)
    blended = np.empty((len(digits), height, width, 3), np.uint8)
    for row, digit in enumerate(digits.reshape(len(digits), height, width, -1)):
        photo = photos[generator.integers(len(photos))]
        top = generator.integers(photo.shape[0] - height + 1)
        left = generator.integers(photo.shape[1] - width + 1)
        patch = photo[top : top + height, left : left + width].astype(np.int16)
        blended[row] = np.abs(patch - digit)
    return blended
