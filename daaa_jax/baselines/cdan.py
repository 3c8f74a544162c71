"""CDAN+E: DANN on the product of features and predictions, weighted by confidence.

Long et al., Conditional Adversarial Domain Adaptation, NeurIPS 2018.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

from daaa_jax.baselines.dann import DomainDiscriminator
from daaa_jax.baselines.method import ClassifierOutput, DomainOutputs, Inputs, Method, Params, Terms
from daaa_jax.baselines.reversal import ramp, reverse_gradient
from daaa_jax.losses import entropy

_LARGEST_PRODUCT = 4096  # entries; larger products are projected at random
_PROJECTED = 1024  # entries of a projected product


def multilinear_map(features: Array, predictions: Array) -> Array:
    """Products of each feature with each prediction, or random sums of them (Section 3.1).

    Args:
      features: `[B,D]`.
      predictions: `[B,K]`.

    Returns:
      `[B,D K]`; if that is over 4096, `[B,1024]`: the product of fixed random projections of both,
      divided by sqrt(1024), which keeps inner products in expectation.
    """
    widths = features.shape[1], predictions.shape[1]
    if widths[0] * widths[1] <= _LARGEST_PRODUCT:
        return jnp.einsum("bd,bk->bkd", features, predictions).reshape(len(features), -1)
    generator = np.random.default_rng(0)
    of_features, of_predictions = (
        generator.normal(size=(width, _PROJECTED)).astype(np.float32) for width in widths
    )
    return (features @ of_features) * (predictions @ of_predictions) / _PROJECTED**0.5


def weighted_domain_loss(logits: Array, is_source: Array, weights: Array) -> Array:
    """Cross-entropy of a domain discriminator, the mean of the weighted means of both domains.

    Args:
      logits: `[B]`, positive for the source domain.
      is_source: 1 for images of the source domain and 0 for others, `[B]`.
      weights: of the images, `[B]`. Their sum over a domain carries no gradient, as in the release.

    Returns:
      Scalar, in nats; log 2 if all logits are 0.
    """
    each = optax.sigmoid_binary_cross_entropy(logits, is_source)
    parts = (weights * domain for domain in (is_source, 1 - is_source))
    return sum((w * each).sum() / jax.lax.stop_gradient(w.sum()) for w in parts) / 2


class Cdan(Method):
    """A discriminator of the multilinear map of features and softmax, with entropy conditioning.

    Images are weighted by 1 + exp(-H) of their prediction. The discriminator sees predictions as
    constants, but its reversed gradient reaches them through the weights, as in the release. The
    release puts a bottleneck of 256 units before the classifier, whose features the discriminator
    sees, drops half of the discriminator's units at random, and reaches the full weight after a
    fifth of its updates; here every baseline has the same classifier and `ramp`. It projects
    products at random only on request; the paper, as here, above 4096 entries. Each domain passes
    through the classifier alone, as in the release for photos.
    """

    separate_domains = True

    def create(self, key: Array, image: Array, given: ClassifierOutput) -> Params:
        """The discriminator's parameters."""
        seen = multilinear_map(given.features, given.logits)
        discriminator = DomainDiscriminator(self.settings.widths)
        return {"discriminator": discriminator.init(key, seen)["params"]}

    def penalty(self, aux_params: Params, given: DomainOutputs, inputs: Inputs) -> Terms:
        """The domain loss, whose reversed gradient grows with `ramp`."""
        weight = self.settings.weight * ramp(inputs.progress)
        logits = jnp.concatenate([given.source.logits, given.target.logits])
        features = jnp.concatenate([given.source.features, given.target.features])
        predictions = jax.lax.stop_gradient(nn.softmax(logits))
        uncertainty = reverse_gradient(entropy(logits), weight)
        seen = multilinear_map(reverse_gradient(features, weight), predictions)
        discriminator = DomainDiscriminator(self.settings.widths)
        domain = discriminator.apply({"params": aux_params["discriminator"]}, seen)
        is_source = (jnp.arange(len(logits)) < len(given.source.logits)).astype(jnp.float32)
        return {"domain": weighted_domain_loss(domain, is_source, 1 + jnp.exp(-uncertainty))}
