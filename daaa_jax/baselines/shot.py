"""SHOT-IM: target features that the source network's last layer classifies with confidence.

Liang et al., Do We Really Need to Access the Source Data?, ICML 2020, without its pseudo-labels.
"""

from daaa_jax import losses
from daaa_jax.baselines.method import Classify, Inputs, Loss, Method, Params


class Shot(Method):
    """Information maximisation on target images alone, the classifier layer fixed.

    A batch is half of `adapt.batch_size`, like the target's half of every baseline's batch. The
    release puts a bottleneck of 256 units with batch normalisation before a weight-normalised
    classifier and trains the source network with smoothed labels; here every row of a table trains
    the same classifier, from the same source network.
    """

    labels = None
    target_only = True
    rewards_confidence = True
    fixes_classifier = True

    def loss(self, aux_params: Params, classify: Classify, inputs: Inputs) -> Loss:
        """Minus the mutual information of target images and predictions."""
        given = classify(inputs.target)
        loss = self.settings.weight * losses.negative_information(given.logits)
        return loss, {"information": loss}, given
