"""Convolutions by matrix products, as XLA's own run at a fraction of a CPU's speed.

Seven methods, equal to the plain convolution of finite numbers up to rounding, including gradients:

* `winograd` and `winograd_upsampled`, for small square kernels: see `winograd.py`.
* `few_inputs`, for the 3 channels of an image: patches times a matrix.
* `few_outputs`, for an image as output: the transpose; adds products where patches overlap. Both
  compute four neighbouring outputs at once where that saves copies.
* `pointwise`, for 1x1 kernels: a single product.
* `strided`: XLA's own convolution, except for the kernel's gradient, a product per kernel pixel.
* `depthwise`, for one kernel per channel: a sum of shifted images, without a matrix product.

All take padded images `[B, H, W, C]` and a standard HWIO kernel. The stride is 1; the last three
support any stride.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from daaa_jax.models.cpu.matrices import flat, matmul, padded, stored
from daaa_jax.models.cpu.winograd import SCHEMES, winograd


def _patches(images, size):
    """Patches `[B, h, w, size * size * C]`, in two steps, of which the second copies long rows."""
    height, width = (extent - size + 1 for extent in images.shape[1:3])
    rows = jnp.concatenate([images[:, :, j : j + width] for j in range(size)], -1)
    rows = stored(rows) if size > 3 else rows  # recomputing three copies is faster
    return jnp.concatenate([rows[:, i : i + height] for i in range(size)], -1)


def _overlap_added(products, size):
    """Transpose of `_patches`: adds every product to the pixel that it came from."""
    batch, height, width, _ = products.shape
    products = products.reshape(batch, height, width, size, -1)
    rows = sum(padded(products[:, :, :, i], 1, i, size - 1 - i) for i in range(size))
    rows = rows.reshape(batch, -1, width, size, rows.shape[-1] // size)
    return sum(padded(rows[:, :, :, j], 2, j, size - 1 - j) for j in range(size))


def _summed(products, size):
    """Sums the products of kernel and image pixels to the outputs of a `VALID` convolution."""
    batch, height, width, _ = products.shape
    products = products.reshape(batch, height, width, size, -1)
    rows = sum(products[:, i : height - size + 1 + i, :, i] for i in range(size))
    rows = rows.reshape(*rows.shape[:3], size, -1)
    return sum(rows[:, :, j : width - size + 1 + j, j] for j in range(size))


def _turned(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _fold(images):
    """Four neighbours as the channels of one pixel: `[B, H / 2, W / 2, 4 C]`."""
    batch, height, width, channels = images.shape
    split = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return split.swapaxes(2, 3).reshape(batch, height // 2, width // 2, 4 * channels)


def _unfold(images):
    batch, height, width, channels = images.shape
    split = images.reshape(batch, height, width, 2, 2, channels // 4)
    return split.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


def _folded_kernel(kernel):
    """Kernel from folded images to folded outputs, of an odd kernel: `[size', size', 4 C, 4 F]`."""
    size, _, channels, features = kernel.shape
    folded = (size + 1) // 2  # folded pixels that four neighbouring outputs depend on
    places = [
        jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in np.ndindex(2, 2)
    ]
    split = jnp.stack(places, 3).reshape(folded, 2, folded, 2, channels, 4 * features)
    return split.swapaxes(1, 2).reshape(folded, folded, 4 * channels, 4 * features)


def _by_fours(convolution, images, kernel):
    """Applies a convolution; to folded images if the kernel is large.

    The patches of a 7x7 kernel contain each number of the images 49 times, those for four outputs
    16 times. A folded even kernel would have a row and a column of zeros, a small one many.
    """
    size = kernel.shape[0]
    if size < 5 or size % 2 == 0:
        return convolution(images, kernel)
    height, width = (extent - size + 1 for extent in images.shape[1:3])
    even = [(0, 0), (0, height % 2), (0, width % 2), (0, 0)]
    outputs = convolution(_fold(jnp.pad(images, even)), _folded_kernel(kernel))
    return _unfold(outputs)[:, :height, :width]


@jax.custom_vjp
def _gathered(images, kernel):
    return matmul(_patches(images, kernel.shape[0]), flat(kernel))


def _gathered_backward(residuals, gradient):
    images, kernel = residuals
    size = kernel.shape[0]
    d_kernel = flat(_patches(images, size)).T @ flat(gradient)
    d_images = _overlap_added(matmul(gradient, flat(kernel).T), size)
    return d_images, d_kernel.reshape(kernel.shape)


_gathered.defvjp(lambda *inputs: (_gathered(*inputs), inputs), _gathered_backward)


def few_inputs(images: Array, kernel: Array) -> Array:
    """Convolution of images with few channels."""
    return _by_fours(_gathered, images, kernel)


@jax.custom_vjp
def _scattered(images, kernel):
    size, _, channels, _ = kernel.shape
    return _summed(matmul(images, kernel.transpose(2, 0, 1, 3).reshape(channels, -1)), size)


def _scattered_backward(residuals, gradient):
    images, kernel = residuals
    size, margin = kernel.shape[0], (kernel.shape[0] - 1, kernel.shape[0] - 1)
    patches = _patches(jnp.pad(gradient, ((0, 0), margin, margin, (0, 0))), size)
    turned = _turned(kernel)
    d_turned = flat(patches).T @ flat(images)
    return matmul(patches, flat(turned)), _turned(d_turned.reshape(turned.shape))


_scattered.defvjp(lambda *inputs: (_scattered(*inputs), inputs), _scattered_backward)


def few_outputs(images: Array, kernel: Array) -> Array:
    """Convolution to few channels."""
    return _by_fours(_scattered, images, kernel)


def pointwise(images: Array, kernel: Array, stride: int = 1) -> Array:
    """A 1x1 convolution as one product of matrices.

    From `[B, H, W, C]`, XLA would copy whole batches to compute the kernel's gradient.
    """
    return matmul(images[:, ::stride, ::stride], kernel[0, 0])


def plain(images: Array, kernel: Array, stride: int, padding="VALID", groups: int = 1) -> Array:
    """XLA's own convolution; `padding` as for `lax.conv_general_dilated`."""
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def strided(images: Array, kernel: Array, stride: int) -> Array:
    """XLA's own convolution, except for the kernel's gradient: a product per kernel pixel."""
    return plain(images, kernel, stride)


def _strided_backward(stride, residuals, gradient):
    images, kernel = residuals
    height, width = ((extent - 1) * stride + 1 for extent in gradient.shape[1:3])
    d_kernel = [
        flat(images[:, i : i + height : stride, j : j + width : stride]).T @ flat(gradient)
        for i, j in np.ndindex(kernel.shape[:2])
    ]
    transposed = jax.linear_transpose(lambda images: plain(images, kernel, stride), images)
    return *transposed(gradient), jnp.stack(d_kernel).reshape(kernel.shape)


strided.defvjp(lambda *inputs: (plain(*inputs), inputs[:2]), _strided_backward)


def depthwise(images: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of each channel with its own kernel, `[size, size, 1, C]`."""
    size = kernel.shape[0]
    height, width = ((extent - size) // stride * stride + 1 for extent in images.shape[1:3])
    return sum(  # type: ignore[return-value]  # typeshed: 0 without terms
        images[:, i : i + height : stride, j : j + width : stride] * kernel[i, j]
        for i, j in np.ndindex(size, size)
    )


def choose(
    kernel: Array, stride: int = 1, groups: int = 1
) -> Callable[[Array, Array], Array] | None:
    """The method that was measured to be fastest for a kernel; None is XLA's own convolution."""
    size, width, channels, features = kernel.shape
    if size == width and 1 < groups == features and channels == 1:
        return functools.partial(depthwise, stride=stride)
    if size != width or groups != 1:
        return None
    if size == 1:
        return functools.partial(pointwise, stride=stride)
    if stride != 1:
        # Measured: half the time at 4 x 256x256 x 64, three quarters at 32 x 56x56 x 128, no gain
        # for 4x4 kernels or few channels.
        pays = size == 3 and channels >= 64
        return functools.partial(strided, stride=stride) if pays else None
    if channels <= 4:
        return few_inputs
    if features <= 4:
        return few_outputs
    return winograd if size in SCHEMES and _is_wide(kernel) else None


def upsampling_pays(kernel: Array) -> bool:
    """Whether `winograd_upsampled` was measured to be faster than building the doubled image."""
    return kernel.shape[:2] == (3, 3) and _is_wide(kernel)


def _is_wide(kernel):
    return min(kernel.shape[2:]) >= 32  # for fewer, sums take longer than the products they save
