"""Evaluation of a classifier: accuracy, confusion, soft labels, and outputs for single images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from daaa_jax import attention, em, models
from daaa_jax.data.augment import decode, encode, evaluation_views
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import Diverged
from daaa_jax.models import Variables
from daaa_jax.runtime import device_memory
from daaa_jax.runtime import mesh as meshes

_BINS = 10  # of confidence


class BatchOutputs(struct.PyTreeNode):
    """Outputs of a network for a batch of images.

    Attributes:
      posteriors: mean over the crops of an image, float32 `[B,K]`, rows sum to 1.
      features: inputs of the last layer, mean over the crops, float32 `[B,D]`.
      log_posteriors: logarithms of `posteriors`, finite also where these round to 0.
    """

    posteriors: Array
    features: Array
    log_posteriors: Array


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The `posteriors`, `[N,K]`, and `features`, `[N,D]`, of `BatchOutputs` for some images."""

    posteriors: np.ndarray
    features: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of one network on one set of images; shares and accuracies are in [0, 1].

    Attributes:
      confusion: counts by true (row) and predicted (column) class, `[K,K]`.
      confidence: mean of the largest posterior.
      kept: share of the images that the filter of section 3.3, B, keeps.
      kept_by_class: kept images of each true class, `[K]`.
      kept_correct: those of them that are classified correctly, `[K]`.
      calibration: by tenths of confidence, `[10,3]`: number of images whose class is known, sum of
        their confidences, and number classified correctly.
      log_posteriors: of all images, in their order, `[N,K]`.
      outputs: of the requested images, in their order, float64; empty if none were requested.
    """

    confusion: np.ndarray
    confidence: float
    kept: float
    kept_by_class: np.ndarray
    kept_correct: np.ndarray
    calibration: np.ndarray
    log_posteriors: np.ndarray
    outputs: Outputs = Outputs(np.zeros((0, 0)), np.zeros((0, 0)))

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly; NaN if no class is known."""
        return _share(np.trace(self.confusion), self.confusion.sum())

    @property
    def per_class(self) -> np.ndarray:
        """Accuracy of each true class, `[K]`; NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            return np.diag(self.confusion) / self.confusion.sum(axis=1)

    @property
    def kept_accuracy(self) -> float:
        """Accuracy on the kept images; NaN without a kept image of known class."""
        return _share(self.kept_correct.sum(), self.kept_by_class.sum())

    @property
    def rejected_accuracy(self) -> float:
        """Accuracy on the rejected images; NaN without a rejected image of known class."""
        right, known = np.trace(self.confusion), self.confusion.sum()
        return _share(right - self.kept_correct.sum(), known - self.kept_by_class.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al., ICML 2017), ten bins; NaN without classes."""
        count, confidence, right = self.calibration.T
        return _share(np.abs(confidence - right).sum(), count.sum())


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


Evaluator = Callable[..., Evaluation]


def outputs(
    model: nn.Module, variables: Variables, images: Array, augment: ConfigDict, crops: int
) -> BatchOutputs:
    """Posteriors p(z|x) and features of images, averaged over their crops.

    Args:
      model: the classifier, run in evaluation mode.
      variables: its parameters and batch statistics.
      images: uint8 `[B,H,W,3]`.
      augment: `config.augment`, for the size of a crop.
      crops: see `evaluation_views`.
    """
    views = evaluation_views(decode(images), augment, crops)
    flat = views.reshape(-1, *views.shape[2:])
    logits, observed = model.apply(variables, flat, train=False, mutable=["features"])

    def by_crop(each: Array) -> Array:
        return each.reshape(crops, -1, each.shape[-1])

    scores = by_crop(jax.nn.log_softmax(logits.astype(jnp.float32)))
    return BatchOutputs(
        posteriors=by_crop(em.posterior(logits)).mean(axis=0),
        features=by_crop(models.features(observed)).mean(axis=0),
        log_posteriors=jax.nn.logsumexp(scores, axis=0) - np.log(crops),
    )


def paired_posteriors(
    model: nn.Module,
    generator: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    augment: ConfigDict,
    crops: int,
) -> Array:
    """Inference on both images of a pair: `(p(z|x) + gamma p(z|G_TS(x))) / (1 + gamma)`.

    Ours, not the paper's; both posteriors are the adapted network's, and the translation is rounded
    to uint8 as in training.

    Args:
      model: the classifier, run in evaluation mode.
      generator: G_TS.
      variables: `classifier`, `generator` (its parameters) and `gamma`, a scalar in [0, 1].
      images: uint8 `[B,H,W,3]`.
      augment: `config.augment`, for the size of a crop.
      crops: see `evaluation_views`.

    Returns:
      Posteriors of the pairs, float32 `[B,K]`.
    """
    translated = encode(generator.apply({"params": variables["generator"]}, decode(images)))
    own, other = (
        outputs(model, variables["classifier"], each, augment, crops).posteriors
        for each in (images, translated)
    )
    gamma = jnp.float32(variables["gamma"])
    return (own + gamma * other) / (1 + gamma)


def attention_of(
    model: nn.Module, variables: Variables, images: ArrayLike, augment: ConfigDict, layers: str
) -> tuple[dict[str, Array], Array]:
    """Attention maps `[B,h*w]` of a network by layer, and the centre crops that it saw.

    They are summed squares whatever `adapt.attention` is: features cannot be drawn as one map.

    Args:
      model: the classifier, run in evaluation mode.
      variables: its parameters and batch statistics.
      images: uint8 `[B,H,W,3]`.
      augment: `config.augment`, for the size of a crop.
      layers: regular expression of the layers' names.
    """
    watched = model.clone(attention="sum_squares")
    (view,) = evaluation_views(decode(images), augment, 1)
    _, observed = watched.apply(variables, view, train=False, mutable=["intermediates"])
    return attention.collect(observed["intermediates"], layers), view


def make_evaluator(model: nn.Module, mesh: Mesh, config: ConfigDict) -> Evaluator:
    """Makes a function that evaluates a network on a set of images, compiled once for all sets.

    Args:
      config: the whole config; `evaluate`, `augment` and `em.threshold` are read.

    Returns:
      `(variables, data, rows=()) -> Evaluation`, with the outputs of the images numbered in `rows`
      (sorted). All processes must call it together; each reads the images of its own devices. It
      raises `Diverged` if the network's outputs are not finite.
    """
    batch_size, share = config.evaluate.batch_size, meshes.local_share(mesh)
    crops = config.evaluate.crops
    observe = functools.partial(outputs, model, augment=config.augment, crops=crops)
    step = jax.jit(observe, out_shardings=meshes.replicated(mesh))

    @device_memory.enough_memory("an evaluation", "evaluate.batch_size or evaluate.crops")
    def evaluate(variables: Variables, data: LabelledImages, rows=()) -> Evaluation:
        seen, kept, wanted, count = [], [], np.asarray(rows, int), len(data.labels)
        if jax.process_count() > 1 and isinstance(jax.tree.leaves(variables)[0], np.ndarray):
            variables = meshes.replicate(variables, mesh)
        for start in range(0, count, batch_size):
            here = np.minimum(share(np.arange(start, start + batch_size)), count - 1)
            given = step(variables, meshes.assemble_batch(data.images[here], mesh))
            posteriors = np.asarray(given.posteriors)[: count - start]
            scores = np.asarray(given.log_posteriors)[: count - start]
            seen.append((posteriors.max(axis=1), posteriors.argmax(axis=1), scores))
            first, last = np.searchsorted(wanted, (start, start + batch_size))
            if last > first:
                inside = wanted[first:last] - start
                kept.append((posteriors[inside], np.asarray(given.features)[inside]))
        confidence, predicted, scores = map(np.concatenate, zip(*seen, strict=True))
        found = _summary(confidence, predicted, scores, data.labels, config.em.threshold)
        if kept:
            precise = (np.concatenate(x).astype(float) for x in zip(*kept, strict=True))
            found = dataclasses.replace(found, outputs=Outputs(*precise))
        return found

    return evaluate


def of_posteriors(
    posteriors: Array | np.ndarray, labels: np.ndarray, threshold: float
) -> Evaluation:
    """The `Evaluation` of given posteriors.

    Args:
      posteriors: `[N,K]`.
      labels: int32 `[N]`; negative where the class is not known.
      threshold: p_t of section 3.3, B.

    Raises:
      Diverged: if they are not finite.
    """
    posteriors = np.asarray(posteriors)
    with np.errstate(divide="ignore"):
        log_posteriors = np.log(posteriors)
    confidence, predicted = posteriors.max(axis=1), posteriors.argmax(axis=1)
    return _summary(confidence, predicted, log_posteriors, labels, threshold)


def _summary(confidence, predicted, log_posteriors, labels, threshold) -> Evaluation:
    if not np.isfinite(confidence).all():
        raise Diverged(
            "evaluation: the network's outputs are not finite, as training has diverged: lower the "
            "learning rate of this stage"
        )
    classes, known = log_posteriors.shape[1], labels >= 0
    right = predicted == labels
    kept = np.asarray(em.keep_mask(jnp.asarray(confidence[:, None]), threshold), bool)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels[known], predicted[known]), 1)
    calibration = np.zeros((_BINS, 3))
    tenth = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    each = np.stack([np.ones(len(labels)), confidence, right], axis=1)
    np.add.at(calibration, tenth[known], each[known])
    return Evaluation(
        confusion=confusion,
        confidence=float(confidence.mean(dtype=float)),
        kept=float(kept.mean()),
        kept_by_class=np.bincount(labels[kept & known], minlength=classes),
        kept_correct=np.bincount(labels[kept & right], minlength=classes),
        calibration=calibration,
        log_posteriors=log_posteriors,
    )


def spread(count: int, most: int) -> np.ndarray:
    """Up to `most` row numbers spread evenly over `count` images, which may be sorted by class."""
    shown = min(count, most)
    return np.arange(shown) * count // max(shown, 1)
