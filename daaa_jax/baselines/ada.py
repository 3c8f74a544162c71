"""ADA, associative domain adaptation: walks from source to target and back end in their class.

Haeusser et al., Associative Domain Adaptation, ICCV 2017.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from daaa_jax.baselines.method import Batch, Method, Outputs, Params, ramp

_SMALLEST = 1e-8  # of a probability whose logarithm is taken, as in the released code


def walker_loss(source: Array, target: Array, labels: Array) -> Array:
    """Cross-entropy between where walks end and an even choice of their own class (Eq. 2 to 5).

    Args:
      source: features, `[B,D]`; the walks begin and end there.
      target: features, `[B',D]`.
      labels: classes of `source`, int32 `[B]`.

    Returns:
      Scalar, in nats.
    """
    there, back = _steps(source, target), _steps(target, source)
    same = (labels[:, None] == labels[None, :]).astype(jnp.float32)
    wanted = same / same.sum(axis=1, keepdims=True)
    return -(wanted * jnp.log(there @ back + _SMALLEST)).sum(axis=1).mean()


def visit_loss(source: Array, target: Array) -> Array:
    """Cross-entropy between how often each target image is visited and an even share (Eq. 6).

    Args:
      source: features, `[B,D]`.
      target: features, `[B',D]`.

    Returns:
      Scalar, in nats; at least log B'.
    """
    visited = _steps(source, target).mean(axis=0)
    return -jnp.log(visited + _SMALLEST).mean()


def _steps(origin: Array, other: Array) -> Array:
    """Probability of a step from each row of `origin` to each of `other`, `[B,B']`.

    The softmax of their products, divided by the root of D: the features here are a network's own
    2,048 or so, not an embedding of 128.
    """
    products = jnp.matmul(origin, other.T, precision=jax.lax.Precision.HIGHEST)
    return nn.softmax(products / jnp.sqrt(origin.shape[1]), axis=1)


class Ada(Method):
    """Walker and visit loss on the features that the classifier's last layer sees."""

    def penalty(
        self, own: Params, model: nn.Module, source: Outputs, target: Outputs, batch: Batch
    ) -> Mapping[str, Array]:
        """Both losses, their weight growing with `ramp`."""
        weight, features = ramp(batch.progress), (source.features, target.features)
        return {
            "walker": weight * self.settings.walker * walker_loss(*features, batch.labels),
            "visit": weight * self.settings.visit * visit_loss(*features),
        }
