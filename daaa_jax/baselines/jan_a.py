"""JAN-A: JAN whose kernels see what an adversary makes of each layer.

Long et al., Deep Transfer Learning with Joint Adaptation Networks, ICML 2017, section 4.3.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from daaa_jax import losses
from daaa_jax.baselines.jan import layers
from daaa_jax.baselines.method import (
    ClassifierOutputs,
    Inputs,
    Method,
    Params,
    ramp,
    reverse_gradient,
)


class Adversary(nn.Module):
    """A layer's features `[B,D]` to `[B,width]`: two fully connected layers.

    Attributes:
      width: of both.
    """

    width: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        features = nn.relu(nn.Dense(self.width, name="hidden")(features))
        return nn.Dense(self.width, name="output")(features)


class JanA(Method):
    """The network minimises the JMMD that the adversaries, one to each layer, maximise.

    The network's gradient grows with `ramp`; the adversaries' own does not, as DANN's
    discriminator's: an adversary that did not learn at first would be none.
    """

    def create(
        self, key: Array, model: nn.Module, image: Array, given: ClassifierOutputs
    ) -> Params:
        """The adversaries' parameters."""
        return {
            f"layer{number}": Adversary(self.settings.width).init(own, features)["params"]
            for number, (own, features) in enumerate(
                zip(jax.random.split(key, 2), layers(given), strict=True)
            )
        }

    def penalty(
        self,
        aux_params: Params,
        model: nn.Module,
        source: ClassifierOutputs,
        target: ClassifierOutputs,
        inputs: Inputs,
    ) -> Mapping[str, Array]:
        """JMMD behind the adversaries; the gradient that leaves it towards the network grows."""
        maximising = reverse_gradient(aux_params, jnp.float32(1))

        def seen(given: ClassifierOutputs) -> list[Array]:
            # Twice reversed: the gradient as it is, times the ramp.
            growing = reverse_gradient(layers(given), -ramp(inputs.progress))
            return [
                Adversary(self.settings.width).apply({"params": maximising[f"layer{n}"]}, features)
                for n, features in enumerate(growing)
            ]

        return {"jmmd": self.settings.weight * losses.jmmd(seen(source), seen(target))}
