"""DANN, called RevGrad in the paper: features from which a discriminator cannot tell the domain.

Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import optax
from jax import Array

from daaa_jax.baselines.method import ClassifierOutput, DomainOutputs, Inputs, Method, Params, Terms
from daaa_jax.baselines.reversal import ramp, reverse_gradient


class DomainDiscriminator(nn.Module):
    """Maps features `[B,D]` to logits `[B]`, positive for the source domain.

    Attributes:
      widths: units of the hidden layers. The papers use one layer of 100 for digits (DANN and the
        release of DSN), two of 1,024 for photos.
    """

    widths: Sequence[int]

    @nn.compact
    def __call__(self, features: Array) -> Array:
        for number, width in enumerate(self.widths, start=1):
            features = nn.relu(nn.Dense(width, name=f"hidden{number}")(features))
        return nn.Dense(1, name="logit")(features)[:, 0]


def domain_loss(source: Array, target: Array) -> Array:
    """Cross-entropy of a domain discriminator (Eq. 9), the mean of the means of both domains.

    Args:
      source: logits on the source domain, `[B]`.
      target: logits on the target domain, `[B']`.

    Returns:
      Scalar, in nats; log 2 if all logits are 0.
    """
    as_source = optax.sigmoid_binary_cross_entropy(source, jnp.ones_like(source)).mean()
    as_target = optax.sigmoid_binary_cross_entropy(target, jnp.zeros_like(target)).mean()
    return (as_source + as_target) / 2


class Dann(Method):
    """A discriminator learns to tell the domains apart by the features, which learn to prevent it.

    The reversed gradient grows with `ramp`; the discriminator's gradient does not.
    """

    def create(self, key: Array, image: Array, given: ClassifierOutput) -> Params:
        """The discriminator's parameters."""
        discriminator = DomainDiscriminator(self.settings.widths)
        return {"discriminator": discriminator.init(key, given.features)["params"]}

    def penalty(self, aux_params: Params, given: DomainOutputs, inputs: Inputs) -> Terms:
        """The domain loss, with reversed gradient for the features."""
        weight = self.settings.weight * ramp(inputs.progress)
        params = aux_params["discriminator"]
        return {"domain": adversarial(params, self.settings.widths, given, weight)}


def adversarial(
    params: Params, widths: Sequence[int], given: DomainOutputs, weight: Array
) -> Array:
    """The domain loss of a discriminator, whose gradient reaches the features times `-weight`."""
    discriminator = DomainDiscriminator(widths)
    logits = (
        discriminator.apply({"params": params}, reverse_gradient(of_domain.features, weight))
        for of_domain in given
    )
    return domain_loss(*logits)
