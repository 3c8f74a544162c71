"""Convolutions made of matrix products, because XLA's own run at a fraction of a CPU's speed.

Seven forms, each the same function of finite numbers as the plain convolution up to rounding,
gradients included:

* `winograd` for small square kernels: a tile of outputs costs fewer products than its pixels times
  the kernel's (Winograd's minimal filtering, Lavin and Gray 2016, arXiv:1509.09308), and
  `winograd_upsampled`, the same for an image doubled by repetition, which is never built.
* `few_inputs`, for an image's 3 channels: patches times a matrix.
* `few_outputs`, for an image as output: the transpose, products added up where patches overlap.
  Both make four neighbouring outputs at once where that spares copies.
* `pointwise`, for 1x1 kernels: a product and nothing else.
* `strided`: forwards and to the images XLA's own, the kernel's gradient a product for each pixel.
* `depthwise`, for a kernel for each channel: a sum of shifted images, without a matrix.

All take `[B, H, W, C]` that is padded already and a standard HWIO kernel, and move by one pixel;
the last three by any stride.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A convolution along one axis as products: `outputs @ ((kernel @ k) * (inputs @ x))`.

    Attributes:
      inputs: coefficients of each product's left factor over a tile's pixels.
      kernel: coefficients of each product's right factor over the kernel's pixels.
      outputs: coefficients of each of the tile's outputs over the products.
      step: pixels between the tiles.
    """

    inputs: tuple[tuple[float, ...], ...]
    kernel: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]
    step: int


def minimal_filtering(outputs: int, taps: int, points: tuple[float, ...]) -> Scheme:
    """Toom and Cook's scheme: polynomials multiplied by their values at `points` and infinity."""
    factors = [[other for other in points if other != point] for point in points]
    left = [np.pad(np.poly(others)[::-1], (0, 1)) for others in factors]
    left.append(np.poly(points)[::-1])
    right = [
        np.power(point, np.arange(taps)) / np.prod(point - np.array(others))
        for point, others in zip(points, factors, strict=True)
    ]
    right.append(np.eye(taps)[-1])
    sums = [[point**i for point in points] + [float(i == outputs - 1)] for i in range(outputs)]
    rows = (tuple(tuple(map(float, row)) for row in rows) for rows in (left, right, sums))
    return Scheme(*rows, step=outputs)


SCHEMES = {
    3: minimal_filtering(2, 3, (0.0, 1.0, -1.0)),
    4: minimal_filtering(2, 4, (0.0, 1.0, -1.0, 2.0)),
}
# Of an image doubled by repetition, a tile of two outputs sees three pixels a, b, c as a b b c:
# the products are (a-b)k0, b(k0+k1+k2) and (c-b)k2.
UPSAMPLING = Scheme(
    inputs=((1, -1, 0), (0, 1, 0), (0, -1, 1)),
    kernel=((1, 0, 0), (1, 1, 1), (0, 0, 1)),
    outputs=((1, 1, 0), (0, 1, 1)),
    step=1,
)


def _weighted(coefficients, arrays):
    """Sum of coefficient times array, without the products by 0, 1 and -1."""
    total = None
    for coefficient, array in zip(coefficients, arrays, strict=True):
        if coefficient == 0:
            continue
        term = array if abs(coefficient) == 1 else abs(coefficient) * array
        if total is None:
            total = term if coefficient > 0 else -term
        else:
            total = total + term if coefficient > 0 else total - term
    return total


def _interleave(arrays, axis):
    stacked = jnp.stack(arrays, axis + 1)
    shape = stacked.shape
    return stacked.reshape(*shape[:axis], -1, *shape[axis + 2 :])


def _columns(matrix):
    return tuple(zip(*matrix, strict=True))


def _left_factors(images, scheme):
    """Left factors of the products, a grid of `[B, tiles, tiles, C]`."""

    def along(values, axis):
        taps = len(scheme.inputs[0])
        last = values.shape[axis] - taps
        pixels = [
            lax.slice_in_dim(values, tap, tap + last + 1, scheme.step, axis) for tap in range(taps)
        ]
        return [_weighted(row, pixels) for row in scheme.inputs]

    return [along(rows, 2) for rows in along(images, 1)]


def _left_factors_transposed(gradients, scheme):
    def along(values, axis):
        pixels = [_weighted(column, values) for column in _columns(scheme.inputs)]
        reach = -(-len(pixels) // scheme.step) - 1
        phases = []
        for phase in range(scheme.step):
            total = 0
            for shift, pixel in enumerate(pixels[phase :: scheme.step]):
                widths = [(0, 0)] * 4
                widths[axis] = (shift, reach - shift)
                total = total + jnp.pad(pixel, widths)
            phases.append(total)
        joined = _interleave(phases, axis) if scheme.step > 1 else phases[0]
        extent = scheme.step * (values[0].shape[axis] - 1) + len(pixels)
        return lax.slice_in_dim(joined, 0, extent, axis=axis)

    return along([along(row, 2) for row in gradients], 1)


def _right_factors(kernel, scheme):
    """Right factors of the products, `[P * P, C, F]`."""
    matrix = np.asarray(scheme.kernel, np.float32)
    flat = np.kron(matrix, matrix) @ kernel.reshape(-1, math.prod(kernel.shape[2:]))
    return flat.reshape(-1, *kernel.shape[2:])


def _right_factors_transposed(gradients, scheme):
    matrix = np.asarray(scheme.kernel, np.float32)
    size = matrix.shape[1]
    flat = np.kron(matrix, matrix).T @ gradients.reshape(len(gradients), -1)
    return flat.reshape(size, size, *gradients.shape[1:])


def _outputs(products, scheme):
    """Images `[B, H, W, F]` from a grid of products `[B, tiles, tiles, F]`."""

    def along(values):
        return [_weighted(coefficients, values) for coefficients in scheme.outputs]

    rows = zip(*(along(column) for column in _columns(products)), strict=True)
    return _interleave([_interleave(along(row), 2) for row in rows], 1)


def _outputs_transposed(gradients, scheme):
    def along(values):
        return [_weighted(coefficients, values) for coefficients in _columns(scheme.outputs)]

    count = len(scheme.outputs)
    pixels = [[gradients[:, i::count, j::count] for i in range(count)] for j in range(count)]
    rows = zip(*(along(column) for column in pixels), strict=True)
    return [along(row) for row in rows]


def _stored(array):
    """The same array, of finite numbers, written to memory once.

    XLA would repeat the operations that give it inside each of the many that use it, but never a
    division. That this one divides by 1 it cannot know, as 0 times an infinity is not 0; nor can it
    make a product of it, which it does with a division by one number for all.
    """
    return array / (1 + 0 * array)


def _flat(array):
    return array.reshape(-1, array.shape[-1])


def _matmul(array, matrix):
    return (_flat(array) @ matrix).reshape(*array.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tiled(images, kernel, scheme):
    left = _left_factors(_stored(images), scheme)
    right = iter(_right_factors(kernel, scheme))
    return _outputs([[_matmul(factor, next(right)) for factor in row] for row in left], scheme)


def _tiled_forward(images, kernel, scheme):
    return _tiled(images, kernel, scheme), (images, kernel)


def _tiled_backward(scheme, residuals, gradient):
    images, kernel = residuals
    images, gradient = _stored(images), _stored(gradient)
    left = itertools.chain(*_left_factors(images, scheme))
    right = iter(_right_factors(kernel, scheme))
    products = _outputs_transposed(gradient, scheme)
    d_right = [_flat(next(left)).T @ _flat(product) for row in products for product in row]
    d_left = [[_matmul(product, next(right).T) for product in row] for row in products]
    return (
        _left_factors_transposed(d_left, scheme),
        _right_factors_transposed(jnp.stack(d_right), scheme),
    )


_tiled.defvjp(_tiled_forward, _tiled_backward)


def winograd(images: Array, kernel: Array) -> Array:
    """Convolution with a 3x3 or 4x4 kernel."""
    size, scheme = kernel.shape[0], SCHEMES[kernel.shape[0]]
    height, width = (extent - size + 1 for extent in images.shape[1:3])
    missing = [(0, 0), (0, -height % scheme.step), (0, -width % scheme.step), (0, 0)]
    return _tiled(jnp.pad(images, missing), kernel, scheme)[:, :height, :width]


def winograd_upsampled(images: Array, kernel: Array) -> Array:
    """Doubles height and width by repetition, then convolves with a 3x3 kernel.

    The padding of the images, one pixel, is doubled too, and half of it is left over.
    """
    return _tiled(images, kernel, UPSAMPLING)


def _patches(images, size):
    """Patches `[B, h, w, size * size * C]`; in two steps, of which the second copies long rows."""
    height, width = (extent - size + 1 for extent in images.shape[1:3])
    rows = jnp.concatenate([images[:, :, j : j + width] for j in range(size)], -1)
    rows = _stored(rows) if size > 3 else rows  # three copies are made sooner again than stored
    return jnp.concatenate([rows[:, i : i + height] for i in range(size)], -1)


def _overlap_added(products, size):
    """Transpose of `_patches`: every product is added to the pixel that it came from."""
    batch, height, width, _ = products.shape
    products = products.reshape(batch, height, width, size, -1)
    rows = sum(
        jnp.pad(products[:, :, :, i], ((0, 0), (i, size - 1 - i), (0, 0), (0, 0)))
        for i in range(size)
    )
    rows = rows.reshape(batch, -1, width, size, rows.shape[-1] // size)
    return sum(
        jnp.pad(rows[:, :, :, j], ((0, 0), (0, 0), (j, size - 1 - j), (0, 0))) for j in range(size)
    )


def _summed(products, size):
    """The part of `_overlap_added`, of products in turned order, that sees whole kernels."""
    batch, height, width, _ = products.shape
    products = products.reshape(batch, height, width, size, -1)
    rows = sum(products[:, i : height - size + 1 + i, :, i] for i in range(size))
    rows = rows.reshape(*rows.shape[:3], size, -1)
    return sum(rows[:, :, j : width - size + 1 + j, j] for j in range(size))


def _turned(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _fold(images):
    """Four neighbours as channels of one pixel: `[B, H / 2, W / 2, 4 C]`."""
    batch, height, width, channels = images.shape
    split = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return split.swapaxes(2, 3).reshape(batch, height // 2, width // 2, 4 * channels)


def _unfold(images):
    batch, height, width, channels = images.shape
    split = images.reshape(batch, height, width, 2, 2, channels // 4)
    return split.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


def _folded_kernel(kernel):
    """What maps folded images to folded outputs, of an odd kernel: `[size', size', 4 C, 4 F]`."""
    size, _, channels, features = kernel.shape
    folded = (size + 1) // 2  # of folded pixels, those that four neighbouring outputs see
    places = [
        jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in np.ndindex(2, 2)
    ]
    split = jnp.stack(places, 3).reshape(folded, 2, folded, 2, channels, 4 * features)
    return split.swapaxes(1, 2).reshape(folded, folded, 4 * channels, 4 * features)


def _by_fours(convolution, images, kernel):
    """The convolution, of folded images if the kernel is large.

    For each number of the images a 7x7 kernel takes 49 in patches, and 16 in patches for four
    outputs. A folded even kernel has a row and a column of zeros, a small one many.
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
    return _matmul(_patches(images, kernel.shape[0]), _flat(kernel))


def _gathered_backward(residuals, gradient):
    images, kernel = residuals
    size = kernel.shape[0]
    d_kernel = _flat(_patches(images, size)).T @ _flat(gradient)
    d_images = _overlap_added(_matmul(gradient, _flat(kernel).T), size)
    return d_images, d_kernel.reshape(kernel.shape)


_gathered.defvjp(lambda *inputs: (_gathered(*inputs), inputs), _gathered_backward)


def few_inputs(images: Array, kernel: Array) -> Array:
    """Convolution of images with few channels."""
    return _by_fours(_gathered, images, kernel)


@jax.custom_vjp
def _scattered(images, kernel):
    size, _, channels, _ = kernel.shape
    return _summed(_matmul(images, kernel.transpose(2, 0, 1, 3).reshape(channels, -1)), size)


def _scattered_backward(residuals, gradient):
    images, kernel = residuals
    size, margin = kernel.shape[0], (kernel.shape[0] - 1, kernel.shape[0] - 1)
    patches = _patches(jnp.pad(gradient, ((0, 0), margin, margin, (0, 0))), size)
    turned = _turned(kernel)
    d_turned = _flat(patches).T @ _flat(images)
    return _matmul(patches, _flat(turned)), _turned(d_turned.reshape(turned.shape))


_scattered.defvjp(lambda *inputs: (_scattered(*inputs), inputs), _scattered_backward)


def few_outputs(images: Array, kernel: Array) -> Array:
    """Convolution to few channels."""
    return _by_fours(_scattered, images, kernel)


def pointwise(images: Array, kernel: Array, stride: int = 1) -> Array:
    """A 1x1 convolution as one product.

    Of matrices: XLA would copy whole batches to get the kernel's gradient from `[B, H, W, C]`.
    """
    return _matmul(images[:, ::stride, ::stride], kernel[0, 0])


def _strided(images, kernel, stride):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def strided(images: Array, kernel: Array, stride: int) -> Array:
    """XLA's own convolution but for the kernel's gradient: a product for each of its pixels."""
    return _strided(images, kernel, stride)


def _strided_backward(stride, residuals, gradient):
    images, kernel = residuals
    height, width = ((extent - 1) * stride + 1 for extent in gradient.shape[1:3])
    d_kernel = [
        _flat(images[:, i : i + height : stride, j : j + width : stride]).T @ _flat(gradient)
        for i, j in np.ndindex(kernel.shape[:2])
    ]
    (d_images,) = jax.linear_transpose(lambda images: _strided(images, kernel, stride), images)(
        gradient
    )
    return d_images, jnp.stack(d_kernel).reshape(kernel.shape)


strided.defvjp(lambda *inputs: (_strided(*inputs), inputs[:2]), _strided_backward)


def depthwise(images: Array, kernel: Array, stride: int = 1) -> Array:
    """Each channel with a kernel of its own, `[size, size, 1, C]`."""
    size = kernel.shape[0]
    height, width = ((extent - size) // stride * stride + 1 for extent in images.shape[1:3])
    return sum(
        images[:, i : i + height : stride, j : j + width : stride] * kernel[i, j]
        for i, j in np.ndindex(size, size)
    )


def choose(
    kernel: Array, stride: int = 1, groups: int = 1
) -> Callable[[Array, Array], Array] | None:
    """The form that was measured to be the fastest for a kernel; None is XLA's own convolution."""
    size, width, channels, features = kernel.shape
    if size == width and 1 < groups == features and channels == 1:
        return functools.partial(depthwise, stride=stride)
    if size != width or groups != 1:
        return None
    if size == 1:
        return functools.partial(pointwise, stride=stride)
    if stride != 1:
        # Measured: half the time at 4 x 256x256 x 64, three quarters at 32 x 56x56 x 128, none less
        # at 4x4 kernels and few channels.
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
    return min(kernel.shape[2:]) >= 32  # below, sums take longer than the products they spare
