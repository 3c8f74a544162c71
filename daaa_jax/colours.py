"""How far the colours of translations are from those of real images, without a label."""

from collections.abc import Mapping

import numpy as np
from scipy.spatial.distance import cdist

from daaa_jax.data.images import Images
from daaa_jax.evaluation import spread

_IMAGES = 2000  # of each set, spread over it
_AT_ONCE = 256  # images that are read at a time


def distance(colours: np.ndarray, others: np.ndarray) -> float:
    """Energy distance (Székely and Rizzo, 2013) between two sets of colours.

    Args:
      colours: `[N,3]`.
      others: `[M,3]`.

    Returns:
      2 E|X-Y| - E|X-X'| - E|Y-Y'|, in their unit; zero where both sets are the same.
    """
    between, *within = (
        cdist(*pair).mean() for pair in ((colours, others), (colours,) * 2, (others,) * 2)
    )
    return float(2 * between - sum(within))


def mean_colours(images: np.ndarray | Images) -> np.ndarray:
    """Mean red, green and blue of each image, of up to 2,000 of them, `[N,3]` in [-1,1]."""
    rows = spread(len(images), _IMAGES)
    blocks = [rows[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE)]
    means = [images[block].mean(axis=(1, 2), dtype=np.float64) for block in blocks]
    return np.concatenate(means) / 127.5 - 1


def of_translations(
    domains: Mapping[str, np.ndarray | Images], made: Mapping[str, np.ndarray | Images]
) -> dict[str, dict[str, float]]:
    """How far the mean colours of images lie from the other domain's, translated and not.

    Args:
      domains: by name, the two domains' images.
      made: by direction, such as `mnist_to_mnist_m`, the translations.

    Returns:
      By direction, the distance of the `originals` and of the `translations` from the images of the
      domain whose style they shall have.
    """
    first, second = domains
    real = {name: mean_colours(images) for name, images in domains.items()}
    return {
        f"{origin}_to_{style}": {
            "originals": distance(real[origin], real[style]),
            "translations": distance(mean_colours(made[f"{origin}_to_{style}"]), real[style]),
        }
        for origin, style in ((first, second), (second, first))
    }


def tell(distances: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a line for each direction of `of_translations`."""
    for direction, found in distances.items():
        print(
            f"translate {direction}: mean colours lie {found['translations']:.3f} from real ones, "
            f"originals' {found['originals']:.3f}",
            flush=True,
        )
