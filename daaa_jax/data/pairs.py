"""The rows of an adaptation batch: which images the networks see, in four groups (section 3.3)."""

from collections.abc import Sequence

import numpy as np
from flax import struct
from jax import Array

from daaa_jax.data.batches import IndexStream
from daaa_jax.data.images import Images

# Real source, synthetic target, real target, synthetic source: the order in a batch, and in the
# array of all images, where a translation has the place of its original.
GROUPS = ("s", "t_f", "t", "s_f")


@struct.dataclass
class Batch:
    """Rows of the four groups, as indices into all images; or the images, see `feed.take`.

    Attributes:
      target_rows: what the target network sees, int32 `[B]`.
      source_rows: what the source network sees, int32 `[B]`.
      posterior_rows: the real target images of the last two groups, int32 `[B_T']`; padded at the
        end where the mesh does not divide their number.
      labels: classes of the first two groups, int32 `[B]`; 0 in the others, where nothing reads it.
    """

    target_rows: Array
    source_rows: Array
    posterior_rows: Array
    labels: Array


class BatchStream:
    """The batches of stage `adapt`: a function of (seed, step) alone.

    The images stand in one array, as `all_images` lays them out.
    """

    def __init__(
        self, labels: np.ndarray, targets: int, sizes: Sequence[int], seed: int, multiple: int = 1
    ):
        """Prepares the four independent streams.

        Args:
          labels: classes of the source training images, int32 `[N_S]`.
          targets: number of target training images, N_T.
          sizes: of the groups, as `group_sizes` gives them.
          seed: of the order.
          multiple: number of posterior rows is rounded up to a multiple of this.
        """
        sources = len(labels)
        self._labels = labels
        self._sources = sum(sizes[:2])
        self._padding = -sum(sizes[2:]) % multiple
        begin = {"s": 0, "t_f": sources, "t": 2 * sources, "s_f": 2 * sources + targets}
        self._begin_real_target = begin["t"]
        # Which images the target and the source network see of a pair (section 3 of the paper).
        seen = {"s": ("s", "s"), "t_f": ("t_f", "s"), "t": ("t", "s_f"), "s_f": ("s_f", "s_f")}
        self._groups = []
        for group, size in zip(GROUPS, sizes, strict=True):
            if size:
                originals = sources if group in ("s", "t_f") else targets
                stream = IndexStream(originals, size, seed, f"adapt {group}")
                by_target, by_source = seen[group]
                self._groups.append((stream, begin[by_target], begin[by_source]))

    def at(self, step: int) -> Batch:
        """The batch of update `step`, counted from 0, as NumPy arrays."""
        drawn = [(stream.at(step), target, source) for stream, target, source in self._groups]
        originals = np.concatenate([rows for rows, _, _ in drawn])
        posterior = originals[self._sources :] + self._begin_real_target
        labels = np.zeros(len(originals), np.int32)
        labels[: self._sources] = self._labels[originals[: self._sources]]
        return Batch(
            target_rows=np.concatenate([rows + target for rows, target, _ in drawn]),
            source_rows=np.concatenate([rows + source for rows, _, source in drawn]),
            posterior_rows=np.pad(posterior, (0, self._padding), mode="edge")
            if len(posterior)
            else posterior,
            labels=labels,
        )


def all_images(
    source: np.ndarray,
    synthetic_target: np.ndarray | Images,
    target: np.ndarray,
    synthetic_source: np.ndarray | Images,
) -> Images:
    """The images of all groups, for a `BatchStream`'s rows.

    Args:
      source: x^S, uint8 `[N_S,H,W,3]`.
      synthetic_target: G_ST(x^S), in the same order.
      target: x^T, uint8 `[N_T,H,W,3]`.
      synthetic_source: G_TS(x^T), in the same order.

    Raises:
      ValueError: if the translations are not as many as their originals.
    """
    if len(source) != len(synthetic_target) or len(target) != len(synthetic_source):
        raise ValueError(
            f"{len(synthetic_target)} translations of {len(source)} source images and "
            f"{len(synthetic_source)} of {len(target)} target images"
        )
    return Images(source, synthetic_target, target, synthetic_source)


def with_images(images: Images, batch: Batch) -> Batch:
    """A batch with the images in place of their rows."""
    return Batch(
        target_rows=images[batch.target_rows],
        source_rows=images[batch.source_rows],
        posterior_rows=images[batch.posterior_rows],
        labels=batch.labels,
    )
