"""ADA, associative domain adaptation: walks source → target → source end in their own class.

Haeusser et al., Associative Domain Adaptation, ICCV 2017.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from daaa_jax.baselines.method import DomainOutputs, Inputs, Method, Params, Terms
from daaa_jax.baselines.reversal import ramp
from daaa_jax.losses import normalised

_SMALLEST = 1e-8  # added to a probability before its logarithm is taken, as in the released code


def walker_loss(
    source: Array, target: Array, labels: Array | np.ndarray, temperature: float
) -> Array:
    """Cross-entropy of the ends of walks with a uniform distribution over their class (Eq. 2 to 5).

    Args:
      source: features, `[B,D]`; the walks start and end there.
      target: features, `[B',D]`.
      labels: classes of `source`, int32 `[B]`.
      temperature: see `_steps`.

    Returns:
      Scalar, in nats.
    """
    there, back = _steps(source, target, temperature), _steps(target, source, temperature)
    same = (labels[:, None] == labels[None, :]).astype(jnp.float32)
    wanted = same / same.sum(axis=1, keepdims=True)
    return -(wanted * jnp.log(there @ back + _SMALLEST)).sum(axis=1).mean()


def visit_loss(source: Array, target: Array, temperature: float) -> Array:
    """Cross-entropy of the visits to target images with a uniform distribution (Eq. 6).

    Args:
      source: features, `[B,D]`.
      target: features, `[B',D]`.
      temperature: see `_steps`.

    Returns:
      Scalar, in nats; at least log B'.
    """
    visited = _steps(source, target, temperature).mean(axis=0)
    return -jnp.log(visited + _SMALLEST).mean()


def _steps(origin: Array, other: Array, temperature: float) -> Array:
    """Probability of a step from each row of `origin` to each of `other`, `[B,B']`.

    The softmax of the cosines divided by the temperature. The release uses dot products of a
    128-unit embedding that is trained from scratch; those of a trained network's features are so
    large that nearly all walks pass through one target image, and the loss has no gradient.
    """
    origin, other = normalised(origin), normalised(other)
    cosines = jnp.matmul(origin, other.T, precision=jax.lax.Precision.HIGHEST)
    return nn.softmax(cosines / temperature, axis=1)


class Ada(Method):
    """Walker and visit loss on the inputs of the classifier's last layer.

    The weights are those of the release for MNIST to MNIST-M. Its batch size (1,000 images of each
    domain) and learning rate (1e-4, from scratch) are not, as all rows of a table have the same
    batches, start and updates. The weight grows with `ramp` instead of starting after 500 updates.
    """

    def penalty(self, aux_params: Params, given: DomainOutputs, inputs: Inputs) -> Terms:
        """Both losses, their weight growing with `ramp`."""
        weight, source, target = ramp(inputs.progress), given.source.features, given.target.features
        walker = walker_loss(source, target, inputs.labels, self.settings.temperature)
        visit = visit_loss(source, target, self.settings.temperature)
        return {
            "walker": weight * self.settings.walker * walker,
            "visit": weight * self.settings.visit * visit,
        }
