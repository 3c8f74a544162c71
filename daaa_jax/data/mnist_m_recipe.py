"""The recipe of MNIST-M (Ganin et al., 2016): digits blended with patches of colour photos.

The formula in that paper is |patch - digit|. The published images use a binary digit, as comparing
them with MNIST by index shows: where a digit's pixel is above 0, the patch is fully inverted.
"""

from collections.abc import Sequence

import numpy as np


def blend(
    digits: np.ndarray, photos: Sequence[np.ndarray], generator: np.random.Generator
) -> np.ndarray:
    """Inverts a random patch of a random photo where each digit is above 0.

    Args:
      digits: grey, uint8 `[N,H,W]`, or with channels, `[N,H,W,1]` or `[N,H,W,3]`.
      photos: RGB, uint8 `[h,w,3]` each, at least as large as a digit.
      generator: draws the photos and the positions of the patches.

    Returns:
      uint8 `[N,H,W,3]`.

    Raises:
      ValueError: if there is no photo, or one is smaller than a digit.
    """
    height, width = digits.shape[1:3]
    if not photos or any(p.shape[0] < height or p.shape[1] < width for p in photos):
        raise ValueError(f"the recipe needs photos of at least {height}x{width} pixels")
    blended = np.empty((len(digits), height, width, 3), np.uint8)
    for row, digit in enumerate(digits.reshape(len(digits), height, width, -1)):
        photo = photos[int(generator.integers(len(photos)))]
        top = generator.integers(photo.shape[0] - height + 1)
        left = generator.integers(photo.shape[1] - width + 1)
        patch = photo[top : top + height, left : left + width]
        blended[row] = np.where(digit > 0, 255 - patch, patch)
    return blended
