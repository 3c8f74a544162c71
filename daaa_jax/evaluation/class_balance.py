"""Classes that training loses: never predicted, or hardly kept by the filter of soft labels."""

from collections.abc import Sequence

import numpy as np

from daaa_jax.errors import listed

_RARE = 5  # a class is kept less often than a fifth of the median share
_LEAST = 20  # images of a class, for a share of them


def lost_classes(posteriors: np.ndarray, threshold: float, names: Sequence[str]) -> list[str]:
    """Lines to log, empty if no class is lost; no label is used.

    Args:
      posteriors: soft labels of target training images, `[N,K]`.
      threshold: p_t of section 3.3, B.
      names: of the classes.
    """
    predicted, kept = posteriors.argmax(axis=1), posteriors.max(axis=1) >= threshold
    count = np.bincount(predicted, minlength=len(names))
    share = np.bincount(predicted[kept], minlength=len(names)) / np.maximum(count, 1)
    never = [name for name, n in zip(names, count, strict=True) if not n]
    least = np.median(share[count > 0]) / _RARE
    rare = [
        f"{name} ({s:.0%} of {n})"
        for name, n, s in zip(names, count, share, strict=True)
        if n >= _LEAST and s < least
    ]
    found = {
        f"classes never predicted on {len(posteriors)} target images: {listed(never)}": never,
        f"classes whose soft labels are kept less than a {_RARE}th as often as the median class's: "
        f"{listed(rare)}": rare,
    }
    return [line for line, classes in found.items() if classes]
