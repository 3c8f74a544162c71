"""JAN: aligns the joint distribution of features and predictions in both domains.

Long et al., Deep Transfer Learning with Joint Adaptation Networks, ICML 2017.
"""

import flax.linen as nn
from jax import Array

from daaa_jax import losses
from daaa_jax.baselines.method import ClassifierOutput, DomainOutputs, Inputs, Method, Params, Terms
from daaa_jax.baselines.reversal import ramp


class Jan(Method):
    """The squared joint maximum mean discrepancy of features and softmax, see `losses.jmmd`.

    For the features the released code sums five Gaussians, where `jmmd` takes their mean; a weight
    of five compensates for that. For the softmax it uses one Gaussian of fixed width, where `jmmd`
    uses five that follow the mean distance. For ResNet-50 the release puts a bottleneck of 256
    units before the classifier; here every row of a table trains the same classifier, and the
    inputs of its last layer are aligned.
    """

    def penalty(self, aux_params: Params, given: DomainOutputs, inputs: Inputs) -> Terms:
        """JMMD, its weight growing with `ramp`."""
        distance = losses.jmmd(*map(layers, given))
        return {"jmmd": self.settings.weight * ramp(inputs.progress) * distance}


def layers(given: ClassifierOutput) -> list[Array]:
    """The layers that JAN aligns: features `[B,D]`, and the softmax of the logits `[B,K]`."""
    return [given.features, nn.softmax(given.logits.astype("float32"))]
