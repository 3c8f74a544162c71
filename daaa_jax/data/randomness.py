"""NumPy generators for data: one for each purpose, so that no two draw the same numbers."""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *more: int) -> np.random.Generator:
    """A generator that is independent of those of other seeds and other purposes.

    Args:
      seed: of the run or of the data.
      purpose: what the numbers are drawn for.
      more: numbers that tell apart what has the same purpose, such as an epoch.
    """
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), *more))
