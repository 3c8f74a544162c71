"""The paper's digit network: three feature convolutions, and a fourth as the classifier."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from daaa_jax.models import layers


class DigitNetwork(nn.Module):
    """Classifies 32x32 images; sows the attention maps of its three feature convolutions.

    Attributes:
      num_classes: number of classes K.
      widths: channels of the feature convolutions.
      attention: how features become attention maps, see `attention.attention_map`.
      standardize: whether to scale each image to mean 0 and deviation 1 first, as in the released
        DSN and ADA. MNIST's batch-norm statistics then suit MNIST-M better: after two epochs, the
        source network classifies 53 % of its development images correctly, instead of 36 %.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    attention: str = "sum_squares"
    standardize: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Maps images `[B, 32, 32, 3]` in [-1, 1] to float32 logits `[B, K]`.

        The maps, taken before pooling, are the intermediates `conv1`, `conv2` and `conv3`.
        """
        layer = functools.partial(layers.attended_convolution, self, train=train)
        features = standardize(images) if self.standardize else images
        for i, width in enumerate(self.widths, start=1):
            features = layers.max_pool_2x2(layer(layers.numbered(i), features, width))
        if features.shape[1:3] != (4, 4):
            raise ValueError(
                f"{len(self.widths)} convolutions make features of "
                f"{features.shape[1]}x{features.shape[2]}, and the classifier takes 4x4: set "
                f"model.widths to one width per halving"
            )
        layers.sow_features(self, features)
        last = layers.Convolution(self.num_classes, size=4, padding="VALID", name="classifier")
        logits = last(features)
        return logits.reshape(logits.shape[0], -1).astype(jnp.float32)


def standardize(images: Array) -> Array:
    """Scales images `[B,H,W,C]`, each to mean 0 and deviation 1 over its pixels and channels.

    The divisor is at least `1 / sqrt(H W C)`, for images of one colour.
    """
    axes, size = (1, 2, 3), images[0].size
    mean, variance = images.mean(axes, keepdims=True), images.var(axes, keepdims=True)
    # Clipped before the root, whose gradient is infinite at 0.
    return (images - mean) / jnp.sqrt(jnp.maximum(variance, 1 / size))
