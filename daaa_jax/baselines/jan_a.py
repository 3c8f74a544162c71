"""JAN-A: JAN with an adversary between each layer and its kernel.

Long et al., Deep Transfer Learning with Joint Adaptation Networks, ICML 2017, section 4.3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from daaa_jax import losses
from daaa_jax.baselines.jan import layers
from daaa_jax.baselines.method import ClassifierOutput, DomainOutputs, Inputs, Method, Params, Terms
from daaa_jax.baselines.reversal import ramp, reverse_gradient


class Adversary(nn.Module):
    """Maps a layer's features `[B,D]` to `[B,width]` by two fully connected layers.

    Attributes:
      width: units of both layers.
    """

    width: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        features = nn.relu(nn.Dense(self.width, name="hidden")(features))
        return nn.Dense(self.width, name="output")(features)


class JanA(Method):
    """The network minimises the JMMD that the adversaries, one for each layer, maximise.

    The network's gradient grows with `ramp`. The adversaries' gradient does not, like that of
    DANN's discriminator, as they must learn from the start.
    """

    def create(self, key: Array, image: Array, given: ClassifierOutput) -> Params:
        """The adversaries' parameters."""
        adversary, keys = Adversary(self.settings.width), jax.random.split(key, 2)
        return {
            f"layer{n}": adversary.init(keys[n], features)["params"]
            for n, features in enumerate(layers(given))
        }

    def penalty(self, aux_params: Params, given: DomainOutputs, inputs: Inputs) -> Terms:
        """JMMD of the adversaries' outputs; its gradient to the network grows with `ramp`."""
        maximising = reverse_gradient(aux_params, jnp.float32(1))

        def seen(of_domain: ClassifierOutput) -> list[Array]:
            # Reversed twice: the gradient keeps its sign and is multiplied by the ramp.
            growing = reverse_gradient(layers(of_domain), -ramp(inputs.progress))
            return [
                Adversary(self.settings.width).apply({"params": maximising[f"layer{n}"]}, features)
                for n, features in enumerate(growing)
            ]

        return {"jmmd": self.settings.weight * losses.jmmd(*map(seen, given))}
