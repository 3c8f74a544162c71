"""ResNets of 18 to 152 layers (He et al., 2016); ResNet-50 is the paper's network for Office-31."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.nn import identity

from daaa_jax.errors import check_choice
from daaa_jax.models.layers import attended_convolution, named, numbered, sow_features

VERSIONS, INPUTS = ("v1.5", "v1"), ("imagenet", "caffe")
# Of ImageNet, for images in [0, 1], as expected by torchvision's weights.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of ImageNet in the order blue, green, red, for images in [0, 255], as expected by Caffe's weights.
_CAFFE_MEAN = (103.939, 116.779, 123.68)

# Names in torchvision's files of weights, and ours; see `pretrained`.
WEIGHT_NAMES = (
    (r"conv1\.weight", r"convolution1/kernel"),
    (r"bn1\.(\w+)", r"norm1/\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", r"stage\1_block\2/convolution\3/kernel"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"stage\1_block\2/norm\3/\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", r"stage\1_block\2/shortcut/kernel"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"stage\1_block\2/shortcut_norm/\3"),
    (r"fc\.weight", r"classifier/kernel"),
    (r"fc\.bias", r"classifier/bias"),
)


class ResNet(nn.Module):
    """Classifies photos; sows the attention map of each of its convolutions, 53 in ResNet-50.

    A map is taken after the convolution's normalisation, and after its ReLU if one follows
    directly. Those of a block's last convolution and of its shortcut are taken before the two are
    added.

    Attributes:
      num_classes: number of classes K.
      version: `v1.5` has a bottleneck's stride in its 3x3 convolution (torchvision); `v1` has it in
        the first 1x1, and pools as Caffe does (the original, which the paper used).
      inputs: normalisation that the weights expect: `imagenet`, by mean and standard deviation
        (torchvision), or `caffe`, channels in reverse order, minus the mean.
      attention: how features become attention maps, see `attention.attention_map`.
      remat: whether to recompute each block's activations in the backward pass, to save memory.
      dtype: computation type; parameters, batch statistics and maps are float32.
      blocks: number of blocks per stage.
      bottlenecks: whether blocks are of 1x1, 3x3 and 1x1 convolutions, the last four times as wide,
        as in ResNet-50 and larger ones; or of two 3x3 convolutions.
      width: channels of the first convolution.
    """

    num_classes: int
    version: str = "v1.5"
    inputs: str = "imagenet"
    attention: str = "sum_squares"
    remat: bool = False
    dtype: jnp.dtype | None = None
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottlenecks: bool = True
    width: int = 64

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Maps images `[B, H, W, 3]` in [-1, 1] to float32 logits `[B, K]`.

        The maps are the intermediates `conv1`, `stage1_block0/conv1`, `/conv2`, `/conv3`,
        `/conv_shortcut` and so on.

        Raises:
          ValueError: if `version` or `inputs` is unknown.
        """
        check_choice("model.version", self.version, VERSIONS)
        layer = functools.partial(attended_convolution, self, train=train, dtype=self.dtype)
        features, edges = prepare(images, self.inputs), ((3, 3), (3, 3))
        features = layer(numbered(1), features, self.width, size=7, stride=2, padding=edges)
        # Caffe starts the first window at the first pixel, and the last may exceed the edge.
        margins = ((1, 1),) * 2 if self.version == "v1.5" else ((0, 1),) * 2
        features = nn.max_pool(features, window_shape=(3, 3), strides=(2, 2), padding=margins)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for stage, count in enumerate(self.blocks, start=1):
            width = self.width * 2 ** (stage - 1)
            for number in range(count):
                stride = 2 if stage > 1 and number == 0 else 1
                first, second = (stride, 1) if self.version == "v1" else (1, stride)
                bottleneck = (width, 1, first), (width, 3, second), (4 * width, 1, 1)
                basic = (width, 3, stride), (width, 3, 1)
                layers = bottleneck if self.bottlenecks else basic
                name = f"stage{stage}_block{number}"
                features = block(layers, self.attention, self.dtype, name=name)(features, train)
        pooled = features.astype(jnp.promote_types(features.dtype, jnp.float32)).mean((1, 2))
        sow_features(self, pooled)
        return nn.Dense(self.num_classes, name="classifier")(pooled)


class Block(nn.Module):
    """Residual block, `[B,H,W,C]` to `[B,ceil(H/s),ceil(W/s),C']`; see `ResNet`.

    Attributes:
      layers: channels, side and stride of each convolution; C' is the channels of the last, and s
        the largest stride.
      attention: how features become attention maps.
      dtype: computation type.
    """

    layers: tuple[tuple[int, int, int], ...]
    attention: str
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, features: Array, train: bool) -> Array:
        layer = functools.partial(attended_convolution, self, train=train, dtype=self.dtype)
        shortcut = features
        channels, stride = self.layers[-1][0], max(stride for _, _, stride in self.layers)
        if stride > 1 or features.shape[-1] != channels:
            options: dict[str, Any] = {"size": 1, "stride": stride, "padding": "VALID"}
            shortcut = layer(named("shortcut"), features, channels, activation=identity, **options)
        for i, (channels, size, stride) in enumerate(self.layers, start=1):
            options = {"size": size, "stride": stride, "padding": ((size // 2, size // 2),) * 2}
            activation = nn.relu if i < len(self.layers) else identity
            features = layer(numbered(i), features, channels, activation=activation, **options)
        return nn.relu(shortcut + features)


def prepare(images: Array, inputs: str) -> Array:
    """Converts images in [-1, 1] to the inputs that the weights expect; see `ResNet.inputs`."""
    check_choice("model.inputs", inputs, INPUTS)
    if inputs == "imagenet":
        mean, deviation = (jnp.asarray(x, images.dtype) for x in (_MEAN, _DEVIATION))
        return ((images + 1) / 2 - mean) / deviation
    return (images[..., ::-1] + 1) * 127.5 - jnp.asarray(_CAFFE_MEAN, images.dtype)


# Each by `model.name`.
NETWORKS = {
    "resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2), bottlenecks=False),
    "resnet34": functools.partial(ResNet, blocks=(3, 4, 6, 3), bottlenecks=False),
    "resnet50": functools.partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet101": functools.partial(ResNet, blocks=(3, 4, 23, 3)),
    "resnet152": functools.partial(ResNet, blocks=(3, 8, 36, 3)),
}
