"""NumPy generators for data, one per purpose, so that no two draw the same numbers."""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *more: int) -> np.random.Generator:
    """A generator that is independent of those for other seeds and purposes.

    Args:
      seed: seed of the run or of the data.
      purpose: what the numbers are drawn for.
      more: numbers that distinguish generators of the same purpose, such as an epoch.
    """
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), *more))
