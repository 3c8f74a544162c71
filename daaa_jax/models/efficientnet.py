"""EfficientNet-Lite0 (Tan and Le, 2019; its Lite form of 2020), a small network for photos."""

import functools
from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.nn import identity

from daaa_jax.models.layers import attended_convolution, named, sow_features

# Repeats, kernel size, stride of the first repeat, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Stage, place in the stage, kernel size, stride, expansion and output channels of each block.
_BLOCKS = [
    (stage, repeat, size, 1 if repeat else stride, expansion, channels)
    for stage, (repeats, size, stride, expansion, channels) in enumerate(_STAGES)
    for repeat in range(repeats)
]


def _timm_blocks() -> Iterator[tuple[str, str]]:
    """Names in timm's files, which number blocks within stages, and ours."""
    for number, (stage, repeat, _, _, expansion, _) in enumerate(_BLOCKS):
        layers = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if expansion == 1:
            layers = {"depthwise": "conv_dw", "project": "conv_pw"}
        block = rf"blocks\.{stage}\.{repeat}"
        for norm, (ours, theirs) in enumerate(layers.items(), start=1):
            yield rf"{block}\.{theirs}\.weight", f"block{number}/{ours}/kernel"
            yield rf"{block}\.bn{norm}\.(\w+)", rf"block{number}/{ours}_norm/\1"


# Names in files of weights, and ours; see `pretrained`. Those of the published file begin with an
# underscore: its block 0 has no expansion, but its norms are numbered as if it had one. The others
# are timm's, whose `tf_efficientnet_lite0` is this network. Its `efficientnet_lite0` pads
# otherwise, and expects images normalised by ImageNet's mean and deviation.
WEIGHT_NAMES = (
    (r"_?conv_stem\.weight", r"stem/kernel"),
    (r"(?:_bn0|bn1)\.(\w+)", r"stem_norm/\1"),
    (r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.weight", r"block\1/\2/kernel"),
    (r"_blocks\.(\d+)\._bn0\.(\w+)", r"block\1/expand_norm/\2"),
    (r"_blocks\.(\d+)\._bn1\.(\w+)", r"block\1/depthwise_norm/\2"),
    (r"_blocks\.(\d+)\._bn2\.(\w+)", r"block\1/project_norm/\2"),
    *_timm_blocks(),
    (r"_?conv_head\.weight", r"head/kernel"),
    (r"(?:_bn1|bn2)\.(\w+)", r"head_norm/\1"),
    (r"(?:_fc|classifier)\.weight", r"classifier/kernel"),
    (r"(?:_fc|classifier)\.bias", r"classifier/bias"),
)

_layer = functools.partial(
    attended_convolution,
    size=1,
    activation=nn.relu6,
    # The published value. After few updates, part of ImageNet's statistics remains, which suit
    # other domains better than those of few source images.
    momentum=0.99,
    epsilon=1e-3,
)


class EfficientNetLite0(nn.Module):
    """Classifies photos; sows the attention map of each of its 49 convolutions.

    Lite means ReLU6 and no squeeze-and-excitation. A map is taken after the convolution's
    normalisation, and after its ReLU6 if it has one. There is no dropout, so that the source and
    the target network can attend alike on an image. The published weights expect images in [-1, 1].

    Attributes:
      num_classes: number of classes K.
      attention: how features become attention maps, see `attention.attention_map`.
      remat: whether to recompute each block's activations in the backward pass, to save memory.
      dtype: computation type; parameters, batch statistics and maps are float32.
    """

    num_classes: int
    attention: str = "sum_squares"
    remat: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Maps images `[B, H, W, 3]` in [-1, 1] to float32 logits `[B, K]`.

        The maps are the intermediates `conv_stem`, `block0/conv_depthwise`, `block0/conv_project`,
        `block1/conv_expand` and so on, and `conv_head`.
        """
        layer = functools.partial(_layer, self, train=train, dtype=self.dtype)
        features = layer(named("stem"), images, 32, size=3, stride=2)
        block = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        for number, (_, _, *shape) in enumerate(_BLOCKS):
            name = f"block{number}"
            features = block(*shape, self.attention, self.dtype, name=name)(features, train)
        features = layer(named("head"), features, 1280)
        pooled = features.astype(jnp.promote_types(features.dtype, jnp.float32)).mean((1, 2))
        sow_features(self, pooled)
        return nn.Dense(self.num_classes, name="classifier")(pooled)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 expansion, depthwise convolution, 1x1 projection, residual sum."""

    size: int
    stride: int
    expansion: int
    channels: int
    attention: str
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, features: Array, train: bool) -> Array:
        layer = functools.partial(_layer, self, train=train, dtype=self.dtype)
        inputs, wide = features, features.shape[-1] * self.expansion
        if self.expansion > 1:
            features = layer(named("expand"), features, wide)
        features = layer(
            named("depthwise"), features, wide, size=self.size, stride=self.stride, groups=wide
        )
        features = layer(named("project"), features, self.channels, activation=identity)
        return features + inputs if features.shape == inputs.shape else features
