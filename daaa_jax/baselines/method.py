"""The interface of a baseline: its auxiliary networks, and the loss of the classifier."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import losses, models
from daaa_jax.data.batches import ImagesOrRows
from daaa_jax.models import Variables

Params = Mapping[str, Any]
Terms = Mapping[str, Array]  # terms of a loss by name, each with its weight


class ClassifierOutput(struct.PyTreeNode):
    """The classifier's outputs for some images.

    Attributes:
      logits: `[B,K]`.
      features: inputs of its last layer, `[B,D]`.
      statistics: the variables that this pass updates, `batch_stats` by name; empty if none.
    """

    logits: Array
    features: Array
    statistics: Mapping[str, Any]

    @classmethod
    def of(
        cls, model: nn.Module, variables: Variables, images: Array, train: bool = False
    ) -> "ClassifierOutput":
        """Applies a network to images `[B,H,W,3]`.

        Args:
          variables: `params` and `batch_stats`; the latter may be missing if `train`.
          train: whether it normalises by the statistics of the batch, and updates its own.
        """
        collections = ["features", "batch_stats"] if train else ["features"]
        logits, updates = model.apply(variables, images, train=train, mutable=collections)
        statistics = {name: value for name, value in updates.items() if name != "features"}
        return cls(logits, models.features(updates), statistics)


class DomainOutputs(NamedTuple):
    """The classifier's outputs for the images of each domain in a batch."""

    source: ClassifierOutput
    target: ClassifierOutput


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


# Of images, optionally with the statistics that an earlier pass updated.
Classify = Callable[..., ClassifierOutput]
Loss = tuple[Array, Terms, ClassifierOutput]  # the loss, what to log, the outputs it is of


class Method:
    """A baseline; subclasses implement `penalty`, or override `loss` as a whole.

    Attributes:
      labels: the field of a batch with the classes of the first images that it classifies; None if
        it is trained without labels.
      target_only: whether it classifies the target's half of a batch alone.
      separate_domains: whether each domain passes through the classifier alone, so that batch
        statistics are of one domain.
      rewards_confidence: whether its loss falls with the entropy of target predictions, as the
        scores of some validators do.
      fixes_classifier: whether the classifier layer keeps its weights.
      recolours: whether `adapt.recolour` changes its target images; False if a network learns to
        generate them.
      optimizer: the stage whose optimiser settings its auxiliary networks use.
    """

    labels: ClassVar[str | None] = "labels"
    target_only: ClassVar[bool] = False
    separate_domains: ClassVar[bool] = False
    rewards_confidence: ClassVar[bool] = False
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

    def loss(self, aux_params: Params, classify: Classify, inputs: Inputs) -> Loss:
        """The loss that the classifier and the auxiliary networks minimise together.

        By default the cross-entropy on the source images plus `penalty`; both domains pass through
        the classifier as one batch, or one after the other, see `separate_domains`.

        Args:
          aux_params: parameters of the method's auxiliary networks.
          classify: applies the classifier that is trained.
          inputs: images, labels, progress and key of the step.

        Returns:
          The loss, its parts to log, and the classifier's outputs, those of the labelled images
          first, with the statistics of all.
        """
        if self.separate_domains:
            source = classify(inputs.source)
            target = classify(inputs.target, source.statistics)
        else:
            count = len(inputs.source)
            given = classify(jnp.concatenate([inputs.source, inputs.target]))
            source, target = (
                given.replace(logits=given.logits[part], features=given.features[part])
                for part in (slice(count), slice(count, None))
            )
        supervised = losses.cross_entropy(source.logits, inputs.labels).mean()
        parts = self.penalty(aux_params, DomainOutputs(source, target), inputs)
        penalty = losses.total(parts.values())
        logged = {"cross_entropy": supervised, "penalty": penalty, **parts}
        return supervised + penalty, logged, source.replace(statistics=target.statistics)

    def penalty(self, aux_params: Params, given: DomainOutputs, inputs: Inputs) -> Terms:
        """The terms added to the cross-entropy."""
        raise NotImplementedError
