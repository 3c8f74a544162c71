"""Adaptation batches: the images of the four groups that each network sees (section 3.3)."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Generic

import numpy as np
from flax import struct
from jax import Array

from daaa_jax.data.batches import ImagesOrRows, IndexStream, Rows
from daaa_jax.data.images import Images
from daaa_jax.data.types import ImageArray

# Real source, synthetic target, real target, synthetic source: the order in a batch and in
# `all_images`, where translations are in the order of their originals.
GROUPS = ("s", "t_f", "t", "s_f")


class AdaptationBatch(struct.PyTreeNode, Generic[ImagesOrRows]):
    """Images of the four groups, uint8; before they are gathered, `Rows` of `all_images`.

    Attributes:
      target: input of the target network, `[B,H,W,3]`.
      source: input of the source network, `[B,H,W,3]`.
      posterior: the real target images of the last two groups, `[B_T',H,W,3]`; padded at the end
        if the mesh does not divide their number.
      labels: classes of the first two groups, int32 `[B]`; 0 and unused for the others.
    """

    target: ImagesOrRows
    source: ImagesOrRows
    posterior: ImagesOrRows
    labels: Array | np.ndarray


def group_sizes(batch_size: int, proportions: Sequence[float]) -> tuple[int, ...]:
    """Divides a batch among the groups by largest remainder, ties to the earlier group.

    Args:
      batch_size: the sum of the sizes.
      proportions: one per group, not negative; need not add up to 1.

    Raises:
      ValueError: if a proportion is negative or all are zero.
    """
    shares = [Fraction(str(share)) for share in proportions]
    if min(shares) < 0 or not sum(shares):
        raise ValueError(f"proportions {tuple(proportions)}: none negative, not all zero")
    exact = [batch_size * share / sum(shares) for share in shares]
    sizes = [int(size) for size in exact]
    by_remainder = sorted(range(len(exact)), key=lambda group: sizes[group] - exact[group])
    for group in by_remainder[: batch_size - sum(sizes)]:
        sizes[group] += 1
    return tuple(sizes)


class BatchStream:
    """Batches of stage `adapt`, a function of (seed, step) alone.

    The images are rows of `all_images`.
    """

    def __init__(
        self, labels: np.ndarray, targets: int, sizes: Sequence[int], seed: int, multiple: int = 1
    ):
        """Prepares the four independent streams.

        Args:
          labels: classes of the source training images, int32 `[N_S]`.
          targets: number of target training images, N_T.
          sizes: group sizes, from `group_sizes`.
          seed: seed of the image order.
          multiple: the number of posterior rows is rounded up to a multiple of this.
        """
        sources = len(labels)
        self._labels = labels
        self._sources = sum(sizes[:2])
        self._padding = -sum(sizes[2:]) % multiple
        first = {"s": 0, "t_f": sources, "t": 2 * sources, "s_f": 2 * sources + targets}
        self._first_real_target = first["t"]
        # The image of a pair that the target and the source network see (section 3 of the paper).
        seen = {"s": ("s", "s"), "t_f": ("t_f", "s"), "t": ("t", "s_f"), "s_f": ("s_f", "s_f")}
        self._groups = []
        for group, size in zip(GROUPS, sizes, strict=True):
            if size:
                originals = sources if group in ("s", "t_f") else targets
                stream = IndexStream(originals, size, seed, f"adapt {group}")
                by_target, by_source = seen[group]
                self._groups.append((stream, first[by_target], first[by_source]))

    def at(self, step: int) -> AdaptationBatch[Rows]:
        """The batch of update `step`, counted from 0, as `Rows`."""
        drawn = [(stream.at(step), target, source) for stream, target, source in self._groups]
        originals = np.concatenate([rows for rows, _, _ in drawn])
        posterior = originals[self._sources :] + self._first_real_target
        labels = np.zeros(len(originals), np.int32)
        labels[: self._sources] = self._labels[originals[: self._sources]]
        posterior = np.pad(posterior, (0, self._padding), mode="edge")
        return AdaptationBatch(
            target=Rows(np.concatenate([rows + target for rows, target, _ in drawn])),
            source=Rows(np.concatenate([rows + source for rows, _, source in drawn])),
            posterior=Rows(posterior),
            labels=labels,
        )


def all_images(
    source: ImageArray,
    synthetic_target: ImageArray,
    target: ImageArray,
    synthetic_source: ImageArray,
) -> Images:
    """Concatenates the images of all groups, for the rows of a `BatchStream`.

    Args:
      source: x^S, uint8 `[N_S,H,W,3]`.
      synthetic_target: G_ST(x^S), in the same order.
      target: x^T, uint8 `[N_T,H,W,3]`.
      synthetic_source: G_TS(x^T), in the same order.

    Raises:
      ValueError: if the number of translations differs from that of the originals.
    """
    if len(source) != len(synthetic_target) or len(target) != len(synthetic_source):
        raise ValueError(
            f"{len(synthetic_target)} translations of {len(source)} source images and "
            f"{len(synthetic_source)} of {len(target)} target images"
        )
    return Images(source, synthetic_target, target, synthetic_source)
