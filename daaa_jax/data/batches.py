"""The images of each batch, a pure function of the seed and the step, so that a run can resume."""

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import struct
from jax import Array

from daaa_jax.data import randomness
from daaa_jax.data.types import ImageArray


class Rows(struct.PyTreeNode):
    """Images of a batch, given by their row numbers in a set of images.

    Attributes:
      rows: int32 `[B]`.
      image_set: index of the set in the `image_sets` of `gather`.
    """

    rows: np.ndarray
    image_set: int = struct.field(pytree_node=False, default=0)


# A batch's images, or their `Rows` until they are gathered.
ImagesOrRows = TypeVar("ImagesOrRows", Array, Rows)


def gather(image_sets: Sequence[Array | ImageArray], batch: Any) -> Any:
    """Replaces each `Rows` in a batch by its images, uint8 `[B,H,W,3]`.

    Args:
      image_sets: each `[N,H,W,3]`: device arrays inside a jitted step, on the host in a worker.
      batch: a tree of arrays and `Rows`.
    """

    def images_of(leaf: Any) -> Any:
        return image_sets[leaf.image_set][leaf.rows] if isinstance(leaf, Rows) else leaf

    return jax.tree.map(images_of, batch, is_leaf=lambda leaf: isinstance(leaf, Rows))


class IndexStream:
    """An endless sequence of index batches; each epoch is a new permutation."""

    def __init__(self, size: int, batch_size: int, seed: int, name: str):
        """Prepares a stream.

        Args:
          size: number of images.
          batch_size: indices per batch; may exceed `size`.
          seed: seed of the run.
          name: streams with different names are independent.

        Raises:
          ValueError: if there are no images, or the batch is empty.
        """
        if size < 1 or batch_size < 1:
            raise ValueError(f"stream {name!r}: {size} images in batches of {batch_size}")
        self.size, self.batch_size = size, batch_size
        self._origin = (seed, name)

    def at(self, step: int) -> np.ndarray:
        """The indices of batch `step`, counted from 0: int32 `[batch_size]`."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.size)
        orders = {e: _permutation(self.size, *self._origin, int(e)) for e in np.unique(epochs)}
        return np.concatenate([order[places[epochs == e]] for e, order in orders.items()])


@functools.lru_cache(maxsize=16)  # the current and the next epoch of each stream
def _permutation(size: int, seed: int, name: str, epoch: int) -> np.ndarray:
    return randomness.generator(seed, name, epoch).permutation(size).astype(np.int32)
