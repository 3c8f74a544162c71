"""Measuring a classifier: accuracy, per class, confusion, and a validator that sees no label."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax import em
from daaa_jax.data.augment import decode, evaluation_views
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError
from daaa_jax.models import Variables
from daaa_jax.runtime import mesh as meshes


@struct.dataclass
class Sums:
    """What a batch adds to an evaluation; padding rows add nothing.

    Attributes:
      count: images.
      confusion: counts by true (row) and predicted (column) class, `[K,K]`, of the images whose
        class is known.
      marginal: sum of the posteriors, `[K]`.
      negative_entropy: sum over samples and classes of p log p.
      confidence: sum of the largest posterior of each sample.
      kept: samples whose largest posterior reaches the threshold.
      kept_correct: those of them that are classified rightly.
    """

    count: Array
    confusion: Array
    marginal: Array
    negative_entropy: Array
    confidence: Array
    kept: Array
    kept_correct: Array


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures of one network on one set of images; shares and accuracies are in [0, 1].

    Attributes:
      confusion: counts by true (row) and predicted (column) class, `[K,K]`.
      information: H(mean posterior) - mean H(posterior) in nats, a validator without labels.
      confidence: mean of the largest posterior.
      kept: share of the images that the filter of section 3.3, B, keeps.
      kept_accuracy: accuracy on those alone; NaN where none is kept or no class is known.
    """

    confusion: np.ndarray
    information: float
    confidence: float
    kept: float
    kept_accuracy: float

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified rightly; NaN where no class is known."""
        known = self.confusion.sum()
        return float(np.trace(self.confusion) / known) if known else float("nan")

    @property
    def per_class(self) -> np.ndarray:
        """Accuracy of each true class, `[K]`; NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            return np.diag(self.confusion) / self.confusion.sum(axis=1)


Evaluator = Callable[[Variables, LabelledImages], Evaluation]


def posterior(
    model: nn.Module, variables: Variables, images: Array, augment: ConfigDict, crops: int
) -> Array:
    """p(z given x) as images are judged by it, the mean over their crops.

    Args:
      model: the classifier, run in evaluation mode.
      variables: its parameters and batch statistics.
      images: uint8 `[B,H,W,3]`.
      augment: `config.augment`, for the size of a crop.
      crops: see `evaluation_views`.

    Returns:
      `[B,K]`, float32.
    """
    views = evaluation_views(decode(images), augment, crops)
    each = em.posterior(model.apply(variables, views.reshape(-1, *views.shape[2:]), train=False))
    return each.reshape(crops, -1, each.shape[-1]).mean(axis=0)


def batch_sums(
    variables: Variables,
    images: Array,
    labels: Array,
    mask: Array,
    *,
    model: nn.Module,
    threshold: float,
    augment: ConfigDict,
    crops: int,
) -> Sums:
    """Evaluates one batch.

    Args:
      variables: of the network, parameters and batch statistics.
      images: uint8 `[B,H,W,3]`.
      labels: int32 `[B]`; negative where the class is not known.
      mask: `[B]`, 0 for the rows that only fill the batch.
      model: the classifier, run in evaluation mode.
      threshold: p_t of section 3.3, B.
      augment: `config.augment`, for the size of a crop.
      crops: see `evaluation_views`; the posteriors of an image's crops are averaged.
    """
    probabilities = posterior(model, variables, images, augment, crops)
    predicted = probabilities.argmax(axis=-1)
    kept = em.keep_mask(probabilities, threshold) * mask
    classes = probabilities.shape[-1]
    true, guess = jax.nn.one_hot(labels, classes), jax.nn.one_hot(predicted, classes)
    return Sums(
        count=mask.sum(),
        confusion=jnp.einsum("bi,bj,b->ij", true, guess, mask).astype(jnp.int32),
        marginal=(probabilities * mask[:, None]).sum(axis=0),
        negative_entropy=(
            jax.scipy.special.xlogy(probabilities, probabilities) * mask[:, None]
        ).sum(),
        confidence=(probabilities.max(axis=-1) * mask).sum(),
        kept=kept.sum(),
        kept_correct=(kept * (predicted == labels)).sum(),
    )


def make_evaluator(model: nn.Module, mesh: Mesh, config: ConfigDict) -> Evaluator:
    """A function `(variables, images) -> Evaluation`, compiled once for all sets of images.

    All processes call it together, and each reads the images of its own devices. It raises a
    `UserError` if the network's outputs are not finite.
    """
    batch_size, share = config.evaluate.batch_size, meshes.local_share(mesh)
    step = jax.jit(
        lambda *arguments: batch_sums(
            *arguments,
            model=model,
            threshold=config.em.threshold,
            augment=config.augment,
            crops=config.evaluate.crops,
        ),
        out_shardings=meshes.replicated(mesh),
    )

    def evaluate(variables: Variables, data: LabelledImages) -> Evaluation:
        total: Sums | None = None
        if jax.process_count() > 1 and isinstance(jax.tree.leaves(variables)[0], np.ndarray):
            variables = meshes.replicate(variables, mesh)
        for start in range(0, len(data.labels), batch_size):
            rows = share(np.arange(start, start + batch_size))
            mask = (rows < len(data.labels)).astype(np.float32)
            rows = np.minimum(rows, len(data.labels) - 1)
            batch = meshes.assemble_batch((data.images[rows], data.labels[rows], mask), mesh)
            sums = jax.device_get(step(variables, *batch))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        return _summary(total)

    return evaluate


def _summary(sums: Sums) -> Evaluation:
    if not np.isfinite(sums.negative_entropy):
        raise UserError(
            "evaluation: the network's outputs are not finite, its training has diverged; lower "
            "the learning rate of this stage"
        )
    count, known = float(sums.count), sums.confusion.sum()
    marginal = np.asarray(sums.marginal, np.float64) / count
    entropy_of_mean = -np.sum(marginal * np.log(np.maximum(marginal, 1e-30)))
    return Evaluation(
        confusion=np.asarray(sums.confusion),
        information=float(entropy_of_mean + sums.negative_entropy / count),
        confidence=float(sums.confidence) / count,
        kept=float(sums.kept) / count,
        kept_accuracy=float(sums.kept_correct) / float(sums.kept)
        if sums.kept and known
        else float("nan"),
    )
