"""JAN: the joint distribution of features and predictions is the same in both domains.

Long et al., Deep Transfer Learning with Joint Adaptation Networks, ICML 2017.
"""

from collections.abc import Mapping

import flax.linen as nn
from jax import Array

from daaa_jax import losses
from daaa_jax.baselines.method import ClassifierOutputs, Inputs, Method, Params, ramp


class Jan(Method):
    """The squared joint maximum mean discrepancy of features and softmax, see `losses.jmmd`.

    The released code sums five Gaussians over the features where `jmmd` takes their mean, which a
    weight of five makes up for. It has one of a fixed width over the softmax, where `jmmd` has five
    that follow the mean distance, as for the features. For ResNet-50 the release puts a bottleneck
    of 256 units before the classifier; here every row of a table trains the same classifier, and
    what its last layer sees is aligned as it is.
    """

    def penalty(
        self,
        aux_params: Params,
        model: nn.Module,
        source: ClassifierOutputs,
        target: ClassifierOutputs,
        inputs: Inputs,
    ) -> Mapping[str, Array]:
        """JMMD, its weight growing with `ramp`."""
        distance = losses.jmmd(layers(source), layers(target))
        return {"jmmd": self.settings.weight * ramp(inputs.progress) * distance}


def layers(given: ClassifierOutputs) -> list[Array]:
    """What JAN aligns: features `[B,D]`, and the softmax of the logits `[B,K]`."""
    return [given.features, nn.softmax(given.logits.astype("float32"))]
