"""The CycleGAN patch discriminator (section 3.1): D_S and D_T."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from daaa_jax.models.layers import Convolution, InstanceNorm, normal_initializer

_SMALLEST_VARIANCE = 1e-4  # keeps the root's gradient finite if all images are alike


class PatchDiscriminator(nn.Module):
    """Discriminates overlapping patches: images `[B, H, W, 3]` to logits `[B, h, w, 1]`.

    Attributes:
      filters: channels of the first convolution; doubled by each layer, up to eight times.
      layers: number of stride-2 convolutions. 3 is the released 70x70 discriminator; 2 suits 32x32
        images, for which it has 6x6 logits.
      batch_deviation: whether the last convolution also gets a channel for each feature of the
        first: the standard deviation over the batch of the feature's mean over the image (after
        Karras et al., 2018). It measures how much the images of a batch differ in brightness and
        colour, and exposes a generator whose images are all alike.

    Raises:
      ValueError: if the images are too small.
    """

    filters: int = 64
    layers: int = 3
    batch_deviation: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        if min(images.shape[1:3]) // 2**self.layers < 3:
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} are too small for a discriminator "
                f"of pair.discriminator_layers={self.layers}"
            )
        convolution = functools.partial(
            Convolution, size=4, padding=((1, 1), (1, 1)), kernel_init=normal_initializer
        )
        features = nn.leaky_relu(convolution(self.filters, stride=2, name="conv1")(images), 0.2)
        means = features.mean((1, 2))
        for i in range(1, self.layers + 1):
            name, width = f"conv{i + 1}", self.filters * min(2**i, 8)
            stride = 2 if i < self.layers else 1
            features = convolution(width, stride=stride, use_bias=False, name=name)(features)
            features = nn.leaky_relu(InstanceNorm(name=f"{name}_norm")(features), 0.2)
        if self.batch_deviation:
            deviation = jnp.sqrt(means.var(axis=0) + _SMALLEST_VARIANCE)
            shape = (*features.shape[:3], len(deviation))
            features = jnp.concatenate([features, jnp.broadcast_to(deviation, shape)], axis=-1)
        return convolution(1, name="logits")(features)
