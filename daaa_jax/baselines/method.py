"""The interface of a baseline: its auxiliary networks, and the loss of the classifier."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import losses
from daaa_jax.data.batches import ImagesOrRows

Params = Mapping[str, Any]


class ClassifierOutput(struct.PyTreeNode):
    """The classifier's outputs for some images.

    Attributes:
      logits: `[B,K]`.
      features: inputs of its last layer, `[B,D]`.
      batch_stats: its batch statistics after this pass.
    """

    logits: Array
    features: Array
    batch_stats: Any


class DomainBatch(struct.PyTreeNode, Generic[ImagesOrRows]):
    """A batch of both domains.

    Attributes:
      source: labelled images, uint8 `[B_S,H,W,3]`, or their `Rows` until they are gathered.
      target: unlabelled images, `[B_T,H,W,3]`, likewise.
      labels: classes of `source`, int32 `[B_S]`.
      target_labels: classes of `target`, int32 `[B_T]`, for `UpperBound` only; zeros for others.
    """

    source: ImagesOrRows
    target: ImagesOrRows
    labels: Array | np.ndarray
    target_labels: Array | np.ndarray


class Inputs(DomainBatch[Array]):
    """Inputs of a method's loss in one step: a batch whose images are float32 in [-1,1].

    Attributes:
      progress: share of the updates made so far, in [0, 1).
      key: PRNG key of the step.
    """

    progress: Array
    key: Array


Classify = Callable[[Array], ClassifierOutput]


class Method:
    """A baseline; subclasses implement `penalty`, or override `loss` as a whole.

    Attributes:
      labels: the field of a batch with the classes of the first images that it classifies; None if
        it is trained without labels.
      fixes_classifier: whether the classifier layer keeps its weights.
      recolours: whether `adapt.recolour` changes its target images; False if a network learns to
        generate them.
      optimizer: the stage whose optimiser settings its auxiliary networks use.
    """

    labels: ClassVar[str | None] = "labels"
    fixes_classifier: ClassVar[bool] = False
    recolours: ClassVar[bool] = True
    optimizer: ClassVar[str] = "adapt"

    def __init__(self, config: ConfigDict, model: nn.Module):
        """Reads the settings of `config.baselines` under the method's name.

        Args:
          config: the whole config.
          model: the classifier.
        """
        self.config, self.settings = config, config.baselines.get(config.method)
        self.model = model

    def create(self, key: Array, image: Array, given: ClassifierOutput) -> Params:
        """Parameters of the method's auxiliary networks, by name.

        Args:
          image: float32 `[1,H,W,3]`, for its shape alone.
          given: the classifier's outputs for it, for their shapes alone.
        """
        return {}

    def loss(
        self, aux_params: Params, classify: Classify, inputs: Inputs
    ) -> tuple[Array, Mapping[str, Array], ClassifierOutput]:
        """The loss that the classifier and the auxiliary networks minimise together.

        By default the cross-entropy on the source images plus `penalty`; both domains pass through
        the classifier as one batch.

        Args:
          aux_params: parameters of the method's auxiliary networks.
          classify: applies the classifier that is trained.
          inputs: images, labels, progress and key of the step.

        Returns:
          The loss, its parts to log, and the classifier's outputs, those of the labelled source
          images first.
        """
        count = len(inputs.source)
        given = classify(jnp.concatenate([inputs.source, inputs.target]))
        source, target = (
            given.replace(logits=given.logits[part], features=given.features[part])
            for part in (slice(count), slice(count, None))
        )
        supervised = losses.cross_entropy(source.logits, inputs.labels).mean()
        parts = self.penalty(aux_params, source, target, inputs)
        penalty = losses.total(parts.values())
        logged = {"cross_entropy": supervised, "penalty": penalty, **parts}
        return supervised + penalty, logged, given

    def penalty(
        self, aux_params: Params, source: ClassifierOutput, target: ClassifierOutput, inputs: Inputs
    ) -> Mapping[str, Array]:
        """The terms added to the cross-entropy, by name, each with its weight."""
        raise NotImplementedError


def normalised(features: Array) -> Array:
    """Divides each row of features `[B,D]` by its L2 norm; zeros stay zeros."""
    squares = jnp.square(features).sum(axis=1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def ramp(progress: Array) -> Array:
    """A penalty's weight, `2 / (1 + exp(-10 p)) - 1`: from 0 to nearly 1 (Ganin et al., 2016)."""
    return 2 / (1 + jnp.exp(-10 * progress)) - 1


@jax.custom_vjp
def reverse_gradient(tree: Any, factor: Array) -> Any:
    """Identity whose gradient is multiplied by `-factor`.

    A loss of the result is minimised by the parameters after this function and maximised by those
    before it (Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, Eq. 15).
    """
    return tree


def _backward(factor, gradient):
    return jax.tree.map(lambda g: -factor * g, gradient), jnp.zeros_like(factor)


reverse_gradient.defvjp(lambda tree, factor: (tree, factor), _backward)
