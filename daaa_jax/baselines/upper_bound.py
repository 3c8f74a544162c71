"""The upper bound: the target network trained on the target's own labels (Fig. 1c of the paper)."""

from daaa_jax import losses
from daaa_jax.baselines.method import Classify, Inputs, Loss, Method, Params


class UpperBound(Method):
    """Cross-entropy on target images with their labels, for comparison only.

    A batch is half of `adapt.batch_size`, like the target's half of every baseline's batch.
    """

    labels = "target_labels"
    target_only = True

    def loss(self, aux_params: Params, classify: Classify, inputs: Inputs) -> Loss:
        """The cross-entropy on target images alone."""
        given = classify(inputs.target)
        supervised = losses.cross_entropy(given.logits, inputs.target_labels).mean()
        return supervised, {"cross_entropy": supervised}, given
