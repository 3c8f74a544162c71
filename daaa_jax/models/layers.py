"""Layers shared by the networks, with the parameters and results of the standard layers."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from daaa_jax import attention
from daaa_jax.models.cpu import convolution, winograd

_PLAIN = contextvars.ContextVar("plain", default=False)

Padding = str | Sequence[tuple[int, int]]


def _normal(key: Array, shape: Sequence[int], deviation: float) -> Array:
    # Drawn flat: the numbers are the same, and a 4-D draw takes XLA seconds to compile for a CPU.
    return deviation * jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def sow_features(module: nn.Module, features: Array) -> None:
    """Sows the input of a classifier's last layer, `[B, D]` in float32, into `features`.

    Args:
      module: the classifier; to be called from its `__call__`.
      features: the last layer's input, `[B, ...]`; all but the first axis are flattened.
    """
    flat = features.reshape(features.shape[0], -1).astype(jnp.float32)
    module.sow("features", "seen", flat, reduce_fn=lambda _, new: new, init_fn=lambda: None)


def normal_initializer(key: Array, shape: Sequence[int]) -> Array:
    """Normal kernels with a standard deviation of 0.02, as in the released CycleGAN."""
    return _normal(key, shape, 0.02)


def he_normal_initializer(key: Array, shape: Sequence[int]) -> Array:
    """HWIO kernels that preserve the variance through a ReLU (He et al., 2015)."""
    return _normal(key, shape, math.sqrt(2 / math.prod(shape[:-1])))


def convolve(
    images: Array, kernel: Array, stride: int = 1, padding: Padding = "SAME", groups: int = 1
) -> Array:
    """Convolution of `[B, H, W, C]` with an HWIO kernel; on a CPU, by the fastest method."""
    fast = convolution.choose(kernel, stride, groups) if _on_cpu(images) else None
    if fast is not None:
        if isinstance(padding, str):
            sizes, strides = (images.shape[1:3], kernel.shape[:2]), (stride, stride)
            padding = lax.padtype_to_pads(*sizes, strides, padding)
        return fast(jnp.pad(images, ((0, 0), *padding, (0, 0))), kernel)
    return convolution.plain(images, kernel, stride, padding, groups)


def upsample_convolve(images: Array, kernel: Array) -> Array:
    """Nearest-neighbour upsampling to twice the size, then a 3x3 `SAME` convolution."""
    if _on_cpu(images) and convolution.upsampling_pays(kernel):
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return winograd.winograd_upsampled(padded, kernel)
    return convolve(jnp.repeat(jnp.repeat(images, 2, axis=1), 2, axis=2), kernel)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Context in which XLA's own convolutions are traced, for programs that run on any device."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def _on_cpu(images: Array) -> bool:
    return not _PLAIN.get() and jax.default_backend() == "cpu" and images.dtype == jnp.float32


@jax.custom_vjp
def max_pool_2x2(features: Array) -> Array:
    """2x2 max-pooling with stride 2, `[B, H, W, C]` to `[B, H // 2, W // 2, C]`.

    The gradient goes to the first of equal maxima, as in `nn.max_pool`, whose gradient is slow on a
    CPU.
    """
    first, second, third, fourth = _corners(features)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


def _corners(features):
    """The four pixels of each 2x2 window; an odd last row or column is left out."""
    height, width = features.shape[1] // 2 * 2, features.shape[2] // 2 * 2
    return [features[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]


def _max_pool_backward(features, gradient):
    corners = _corners(features)
    largest = max_pool_2x2(features)
    winner = jnp.full(largest.shape, 3, jnp.int32)
    for i in (2, 1, 0):
        winner = jnp.where(corners[i] == largest, i, winner)
    batch, height, width, channels = largest.shape
    place = jnp.arange(4).reshape(1, 1, 2, 1, 2, 1)
    chosen = winner[:, :, None, :, None] == place
    d_features = jnp.where(chosen, gradient[:, :, None, :, None], 0)
    d_features = d_features.reshape(batch, 2 * height, 2 * width, channels)
    odd = [(0, 0), *((0, extent % 2) for extent in features.shape[1:3]), (0, 0)]
    return (jnp.pad(d_features, odd),)


max_pool_2x2.defvjp(lambda features: (max_pool_2x2(features), features), _max_pool_backward)


def reflect_pad(images: Array, width: int) -> Array:
    """Pads height and width by reflection, as the released CycleGAN does."""
    return jnp.pad(images, ((0, 0), (width, width), (width, width), (0, 0)), mode="reflect")


class Convolution(nn.Module):
    """Convolution with a standard `[size, size, C / groups, features]` kernel.

    Attributes:
      features: output channels.
      size: height and width of the kernel.
      stride: step in both directions.
      padding: as for `lax.conv_general_dilated`.
      groups: number of channel groups that are convolved separately.
      upsample: whether to double height and width by repetition first.
      use_bias: whether to add a bias; not needed before a normalisation.
      kernel_init: called with a PRNG key and the shape of the kernel.
      dtype: computation type; parameters stay float32.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: Padding = "SAME"
    groups: int = 1
    upsample: bool = False
    use_bias: bool = True
    kernel_init: Callable[[Array, Sequence[int]], Array] = he_normal_initializer
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: Array) -> Array:
        shape = (self.size, self.size, images.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        images, kernel = nn.dtypes.promote_dtype(images, kernel, dtype=self.dtype)
        if self.upsample:
            outputs = upsample_convolve(images, kernel)
        else:
            outputs = convolve(images, kernel, self.stride, self.padding, self.groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            outputs = outputs + bias.astype(outputs.dtype)
        return outputs


def numbered(number: int) -> tuple[str, str, str]:
    """Names of a numbered convolution, its normalisation and its attention map."""
    return f"convolution{number}", f"norm{number}", f"conv{number}"


def named(name: str) -> tuple[str, str, str]:
    """Names of a convolution, its normalisation and its attention map."""
    return name, f"{name}_norm", f"conv_{name}"


def attended_convolution(
    module: nn.Module,
    names: tuple[str, str, str],
    features: Array,
    channels: int,
    *,
    train: bool,
    activation: Callable[[Array], Array] = nn.relu,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    dtype: jnp.dtype | None = None,
    **options,
) -> Array:
    """Convolution, batch normalisation and activation; sows the attention map of the result.

    Args:
      module: a network or block with an attribute `attention`; to be called from its `__call__`.
      names: of the convolution, the normalisation and the map, as from `numbered` or `named`.
      features: `[B, H, W, C]`.
      channels: output channels.
      train: whether to normalise by the statistics of the batch, and to update the averages.
      activation: applied after the normalisation.
      momentum: of the averages.
      epsilon: added to the variance.
      dtype: computation type; parameters, batch statistics and maps are float32.
      options: other attributes of `Convolution`.
    """
    layer, norm, attention_map = names
    features = Convolution(channels, use_bias=False, dtype=dtype, name=layer, **options)(features)
    features = nn.BatchNorm(
        use_running_average=not train, momentum=momentum, epsilon=epsilon, dtype=dtype, name=norm
    )(features)
    features = activation(features)
    attention.sow_map(module, attention_map, features, module.attention)
    return features


# Normalises each channel of each sample over its pixels, then scales and shifts it.
InstanceNorm = functools.partial(nn.InstanceNorm, epsilon=1e-5, use_fast_variance=False)
