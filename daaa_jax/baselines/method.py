"""What a baseline is: auxiliary networks, and the loss that it trains the classifier on."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import losses

Params = Mapping[str, Any]


@struct.dataclass
class ClassifierOutputs:
    """What the classifier gives for some images.

    Attributes:
      logits: `[B,K]`.
      features: what its last layer sees, `[B,D]`.
      batch_stats: its batch statistics after this pass.
    """

    logits: Array
    features: Array
    batch_stats: Any


@struct.dataclass
class Inputs:
    """What a method sees in one step.

    Attributes:
      source: labelled images, float32 `[B_S,H,W,3]` in [-1,1].
      target: unlabelled images, `[B_T,H,W,3]`.
      labels: classes of `source`, int32 `[B_S]`.
      target_labels: classes of `target`, int32 `[B_T]`, for `UpperBound` alone: zeros for all else.
      progress: share of the training that lies behind, in [0, 1).
      key: of the step's randomness.
    """

    source: Array
    target: Array
    labels: Array
    target_labels: Array
    progress: Array
    key: Array


Classify = Callable[[Array], ClassifierOutputs]


class Method:
    """A baseline; its subclasses give `penalty`, or `loss` where more is different.

    Attributes:
      reads_target_labels: whether it is trained on them.
      recolours: whether `adapt.recolour` changes its target images; not where they are what a
        network learns to make.
      optimizer: the stage whose optimiser its auxiliary networks have.
    """

    reads_target_labels: ClassVar[bool] = False
    recolours: ClassVar[bool] = True
    optimizer: ClassVar[str] = "adapt"

    def __init__(self, config: ConfigDict):
        """Takes the settings of `config.baselines` under the method's name."""
        self.config, self.settings = config, config.baselines.get(config.method)

    def create(
        self, key: Array, model: nn.Module, image: Array, given: ClassifierOutputs
    ) -> Params:
        """Parameters of the networks that the method has beside the classifier, by name.

        Args:
          key: a PRNG key.
          model: the classifier.
          image: float32 `[1,H,W,3]`, for its shape alone.
          given: the classifier's outputs for it, for their shapes alone.
        """
        del key, model, image, given
        return {}

    def loss(
        self, aux_params: Params, model: nn.Module, classify: Classify, inputs: Inputs
    ) -> tuple[Array, Mapping[str, Array], ClassifierOutputs]:
        """What is minimised, by the classifier and by the method's auxiliary networks together.

        By default the cross-entropy on the source images and `penalty`; both domains go through the
        classifier as one batch.

        Args:
          aux_params: parameters of the method's auxiliary networks.
          model: the classifier, for methods that have more of its kind.
          classify: the classifier that is trained, in training mode.
          inputs: the images.

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
        parts = self.penalty(aux_params, model, source, target, inputs)
        penalty = sum(parts.values())
        logged = {"cross_entropy": supervised, "penalty": penalty, **parts}
        return supervised + penalty, logged, given

    def penalty(
        self,
        aux_params: Params,
        model: nn.Module,
        source: ClassifierOutputs,
        target: ClassifierOutputs,
        inputs: Inputs,
    ) -> Mapping[str, Array]:
        """The terms beside the cross-entropy, each as it enters the loss, by name."""
        raise NotImplementedError


def ramp(progress: Array) -> Array:
    """A penalty's weight, `2 / (1 + exp(-10 p)) - 1`: from 0 to nearly 1 (Ganin et al., 2016)."""
    return 2 / (1 + jnp.exp(-10 * progress)) - 1


@jax.custom_vjp
def reverse_gradient(tree: Any, factor: Array) -> Any:
    """A tree as it is; on the way back its gradient is multiplied by `-factor`.

    What stands behind it is minimised by those that see the tree from behind, and maximised by
    those before (Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, Eq. 15).
    """
    del factor
    return tree


def _forward(tree, factor):
    return tree, factor


def _backward(factor, gradient):
    return jax.tree.map(lambda g: -factor * g, gradient), jnp.zeros_like(factor)


reverse_gradient.defvjp(_forward, _backward)
