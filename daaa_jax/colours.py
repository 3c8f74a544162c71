"""How far the colours of translations are from those of real images, without a label."""

from collections.abc import Mapping

import numpy as np
from scipy.spatial.distance import cdist

from daaa_jax.data.images import Images
from daaa_jax.evaluation import spread

_IMAGES = 2000  # of each set, spread over it
_AT_ONCE = 256  # images that are read at a time


def distance(images: np.ndarray | Images, others: np.ndarray | Images) -> float:
    """Energy distance (Székely and Rizzo, 2013) between the mean colours of two sets of images.

    Args:
      images: uint8 `[N,H,W,3]`, of which up to 2,000 are read.
      others: uint8 `[M,H,W,3]`, likewise.

    Returns:
      2 E|X-Y| - E|X-X'| - E|Y-Y'| of colours in [-1,1]; zero where both sets have the same colours.
    """
    x, y = mean_colours(images), mean_colours(others)
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


def mean_colours(images: np.ndarray | Images) -> np.ndarray:
    """Mean red, green and blue of each image, of up to 2,000 of them, `[N,3]` in [-1,1]."""
    rows = spread(len(images), _IMAGES)
    blocks = [rows[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE)]
    sums = [images[block].mean(axis=(1, 2), dtype=np.float64) for block in blocks]
    return np.concatenate(sums) / 127.5 - 1


def of_translations(
    domains: Mapping[str, np.ndarray | Images], made: Mapping[str, np.ndarray | Images]
) -> dict[str, dict[str, float]]:
    """Both directions of a pair of domains.

    Args:
      domains: by name, the two domains' images.
      made: by direction, such as `mnist_to_mnist_m`, the translations.

    Returns:
      By direction, the distance of the `originals` and of the `translations` from the images of the
      domain whose style they shall have.
    """
    first, second = domains
    return {
        f"{origin}_to_{style}": {
            "originals": distance(domains[origin], domains[style]),
            "translations": distance(made[f"{origin}_to_{style}"], domains[style]),
        }
        for origin, style in ((first, second), (second, first))
    }
