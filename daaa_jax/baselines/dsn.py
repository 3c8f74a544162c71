"""DSN, domain separation networks: separates private features of a domain from shared ones.

Bousmalis et al., Domain Separation Networks, NIPS 2016.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from daaa_jax import losses, models
from daaa_jax.baselines import dann
from daaa_jax.baselines.method import ClassifierOutput, DomainOutputs, Inputs, Method, Params, Terms
from daaa_jax.baselines.reversal import ramp
from daaa_jax.models.layers import Convolution

_LARGEST_START = 8  # pixels; side of a decoder's first feature map, which is then doubled


class Decoder(nn.Module):
    """Maps features `[B,D]` to images `[B,side,side,3]` in [-1,1].

    Attributes:
      side: height and width of the images.
      filters: channels of the convolutions.
    """

    side: int
    filters: int = 32

    @nn.compact
    def __call__(self, features: Array) -> Array:
        doublings = max(0, math.ceil(math.log2(self.side / _LARGEST_START)))
        start = math.ceil(self.side / 2**doublings)
        images = nn.Dense(start * start * self.filters // 2, name="enter")(features)
        images = nn.relu(images.reshape(-1, start, start, self.filters // 2))
        for number in range(doublings):
            images = Convolution(self.filters, upsample=True, name=f"up{number + 1}")(images)
            images = nn.relu(images)
        return jnp.tanh(Convolution(3, name="leave")(images))[:, : self.side, : self.side]


def difference_loss(shared: Array, private: Array) -> Array:
    """Similarity of the shared and private features of the same images (Eq. 5).

    Args:
      shared: `[B,D]`.
      private: `[B,D']`.

    Returns:
      Scalar in [0, 1]: the squared Frobenius norm of `shared^T private` over B^2, of centred
      features that are divided by their norms. The released code divides by D D' instead, which is
      similar for its 100 features; with many features the loss would vanish.

    Raises:
      ValueError: if the batch sizes differ.
    """
    if len(shared) != len(private):
        raise ValueError(f"{len(shared)} shared and {len(private)} private features: must be equal")
    # From the B x B products between images, which are fewer than those between features.
    directions = [losses.normalised(each - each.mean(axis=0)) for each in (shared, private)]
    return jnp.mean((directions[0] @ directions[0].T) * (directions[1] @ directions[1].T))


def reconstruction_loss(images: Array, decoded: Array) -> Array:
    """The scale-invariant mean squared error (Eq. 4), zero for a uniform change of brightness.

    Args:
      images: `[B,H,W,3]`.
      decoded: the same shape.

    Returns:
      Scalar, the mean over the images.
    """
    error = (images - decoded).reshape(len(images), -1)
    return (jnp.square(error).mean(axis=1) - jnp.square(error.mean(axis=1))).mean()


class Dsn(Method):
    """A private network for each domain beside the shared one, and a decoder of their sum.

    The domain of the shared features is hidden as in DANN.
    """

    recolours = False

    def create(self, key: Array, image: Array, given: ClassifierOutput) -> Params:
        """Parameters of both private networks, the decoder and the discriminator."""
        keys = jax.random.split(key, 4)
        decoder = Decoder(image.shape[1])
        discriminator = dann.DomainDiscriminator(self.settings.widths)
        return {
            "source": models.initial_variables(keys[0], self.model, image)["params"],
            "target": models.initial_variables(keys[1], self.model, image)["params"],
            "decoder": decoder.init(keys[2], given.features)["params"],
            "discriminator": discriminator.init(keys[3], given.features)["params"],
        }

    def penalty(self, aux_params: Params, given: DomainOutputs, inputs: Inputs) -> Terms:
        """Reconstruction, difference and similarity (Eq. 1), the last growing with `ramp`."""
        settings = self.settings
        reconstruction = difference = jnp.float32(0)
        for domain in ("source", "target"):
            images, shared = getattr(inputs, domain), getattr(given, domain).features
            # Normalised by the batch's statistics, without running averages.
            params = {"params": aux_params[domain]}
            private = ClassifierOutput.of(self.model, params, images, train=True).features
            decoder = Decoder(images.shape[1])
            decoded = decoder.apply({"params": aux_params["decoder"]}, shared + private)
            reconstruction += reconstruction_loss(images, decoded)
            difference += difference_loss(shared, private)
        weight = settings.similarity * ramp(inputs.progress)
        similarity = dann.adversarial(aux_params["discriminator"], settings.widths, given, weight)
        return {
            "reconstruction": settings.reconstruction * reconstruction,
            "difference": settings.difference * difference,
            "domain": similarity,
        }
