"""The CycleGAN generator (section 3.1): G_ST and G_TS."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from daaa_jax.models.layers import Convolution, InstanceNorm, normal_initializer, reflect_pad


class Generator(nn.Module):
    """Residual generator: images in [-1, 1] to colour images of the same size in [-1, 1].

    Unlike the released one, it upsamples by nearest neighbours and a convolution, which leave no
    checkerboard artefacts as transposed convolutions do.

    Attributes:
      filters: channels of the first convolution; doubled by each downsampling.
      downsamplings: number of times that height and width are halved; they must be divisible.
      blocks: number of residual blocks at the lowest resolution.
      identity_start: whether to add the image before the tanh, as `arctanh(0.99 x)`, and initialise
        the last convolution with zeros, so that the generator starts as `0.99 x`. Translations of
        photos are then sharp from the first epoch; without it, they start grey and need many
        epochs.
    """

    filters: int = 32
    downsamplings: int = 1
    blocks: int = 3
    identity_start: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        if any(size % 2**self.downsamplings for size in images.shape[1:3]):
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} cannot be halved "
                f"pair.downsamplings={self.downsamplings} times"
            )
        convolution = functools.partial(Convolution, use_bias=False, kernel_init=normal_initializer)

        def layer(name: str, features: Array, width: int, activation=nn.relu, **options) -> Array:
            features = convolution(width, name=name, **options)(features)
            return activation(InstanceNorm(name=f"{name}_norm")(features))

        features = layer("enter", reflect_pad(images, 3), self.filters, size=7, padding="VALID")

        edges = ((1, 1), (1, 1))
        for i in range(1, self.downsamplings + 1):
            features = layer(f"down{i}", features, self.filters * 2**i, stride=2, padding=edges)

        half = functools.partial(layer, width=features.shape[-1], padding="VALID")
        for i in range(1, self.blocks + 1):
            inner = half(f"block{i}a", reflect_pad(features, 1))
            inner = half(f"block{i}b", reflect_pad(inner, 1), activation=lambda x: x)
            features = features + inner

        for i in range(self.downsamplings, 0, -1):
            features = layer(f"up{i}", features, self.filters * 2 ** (i - 1), upsample=True)

        start = {"kernel_init": nn.initializers.zeros_init()} if self.identity_start else {}
        leave = convolution(3, 7, padding="VALID", use_bias=True, name="leave", **start)
        outputs = leave(reflect_pad(features, 3))
        if self.identity_start:
            outputs += jnp.arctanh(0.99 * images[..., :3])
        return jnp.tanh(outputs)
