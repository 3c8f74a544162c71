"""Convolutions with small square kernels by Winograd's minimal filtering, for a CPU.

A tile of outputs needs fewer products than its pixels times the kernel's (Lavin and Gray 2016,
arXiv:1509.09308); each is a matrix product over all tiles of all images. For an image that is
doubled by repetition first, it needs fewer still, and the doubled image is never built.
"""

import dataclasses
import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from daaa_jax.models.cpu.matrices import flat, matmul, padded, stored


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Convolution along one axis by products: `outputs @ ((kernel @ k) * (inputs @ x))`.

    Attributes:
      inputs: coefficients of each product's left factor over a tile's pixels.
      kernel: coefficients of each product's right factor over the kernel's pixels.
      outputs: coefficients of each of the tile's outputs over the products.
      step: distance between tiles, in pixels.
    """

    inputs: tuple[tuple[float, ...], ...]
    kernel: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]
    step: int


def minimal_filtering(outputs: int, taps: int, points: tuple[float, ...]) -> Scheme:
    """Toom-Cook scheme: multiplies polynomials by their values at `points` and infinity."""
    left, right = [], []
    for point in points:
        others = [other for other in points if other != point]
        left.append(np.pad(np.poly(others)[::-1], (0, 1)))
        right.append(np.power(point, np.arange(taps)) / np.prod(point - np.array(others)))
    left.append(np.poly(points)[::-1])
    right.append(np.eye(taps)[-1])
    sums = [[point**i for point in points] + [float(i == outputs - 1)] for i in range(outputs)]
    rows = [tuple(tuple(map(float, row)) for row in rows) for rows in (left, right, sums)]
    return Scheme(rows[0], rows[1], rows[2], step=outputs)


SCHEMES = {
    3: minimal_filtering(2, 3, (0.0, 1.0, -1.0)),
    4: minimal_filtering(2, 4, (0.0, 1.0, -1.0, 2.0)),
}
# In an image doubled by repetition, a tile of two outputs depends on three pixels a, b, c, as
# a b b c: the products are (a-b)k0, b(k0+k1+k2) and (c-b)k2.
UPSAMPLING = Scheme(
    inputs=((1, -1, 0), (0, 1, 0), (0, -1, 1)),
    kernel=((1, 0, 0), (1, 1, 1), (0, 0, 1)),
    outputs=((1, 1, 0), (0, 1, 1)),
    step=1,
)


def _weighted(coefficients, arrays):
    """Sum of coefficients times arrays, without multiplying by 0, 1 and -1."""
    terms = []
    for coefficient, array in zip(coefficients, arrays, strict=True):
        if abs(coefficient) == 1:
            terms.append(array if coefficient > 0 else -array)
        elif coefficient:
            terms.append(coefficient * array)
    return functools.reduce(operator.add, terms)


def _interleave(arrays, axis):
    return lax.collapse(jnp.stack(arrays, axis + 1), axis, axis + 2)


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
        phases = [
            sum(
                padded(pixel, axis, shift, reach - shift)
                for shift, pixel in enumerate(pixels[phase :: scheme.step])
            )
            for phase in range(scheme.step)
        ]
        joined = _interleave(phases, axis) if scheme.step > 1 else phases[0]
        extent = scheme.step * (values[0].shape[axis] - 1) + len(pixels)
        return lax.slice_in_dim(joined, 0, extent, axis=axis)

    return along([along(row, 2) for row in gradients], 1)


def _right_factors(values, coefficients):
    """Right factors of the products, `[P * P, C, F]`; with transposed coefficients the reverse."""
    matrix = np.asarray(coefficients, np.float32)
    rows = np.kron(matrix, matrix) @ values.reshape(-1, math.prod(values.shape[-2:]))
    return rows.reshape(-1, *values.shape[-2:])


def _combined(columns, coefficients):
    """Yields rows of weighted sums of a grid of arrays along both of its axes."""

    def along(values):
        return [_weighted(row, values) for row in coefficients]

    return map(along, zip(*map(along, columns), strict=True))


def _outputs(products, scheme):
    """Images `[B, H, W, F]` from a grid of products `[B, tiles, tiles, F]`."""
    rows = _combined(_columns(products), scheme.outputs)
    return _interleave([_interleave(row, 2) for row in rows], 1)


def _outputs_transposed(gradients, scheme):
    count = len(scheme.outputs)
    pixels = [[gradients[:, i::count, j::count] for i in range(count)] for j in range(count)]
    return list(_combined(pixels, _columns(scheme.outputs)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tiled(images, kernel, scheme):
    left = _left_factors(stored(images), scheme)
    right = iter(_right_factors(kernel, scheme.kernel))
    return _outputs([[matmul(factor, next(right)) for factor in row] for row in left], scheme)


def _tiled_backward(scheme, residuals, gradient):
    images, kernel = residuals
    images, gradient = stored(images), stored(gradient)
    left = itertools.chain(*_left_factors(images, scheme))
    right = iter(_right_factors(kernel, scheme.kernel))
    products = _outputs_transposed(gradient, scheme)
    d_right = [flat(next(left)).T @ flat(product) for row in products for product in row]
    d_left = [[matmul(product, next(right).T) for product in row] for row in products]
    d_kernel = _right_factors(jnp.stack(d_right), _columns(scheme.kernel))
    return _left_factors_transposed(d_left, scheme), d_kernel.reshape(kernel.shape)


_tiled.defvjp(lambda *inputs: (_tiled(*inputs), inputs[:2]), _tiled_backward)


def winograd(images: Array, kernel: Array) -> Array:
    """Convolution with a 3x3 or 4x4 kernel."""
    size, scheme = kernel.shape[0], SCHEMES[kernel.shape[0]]
    height, width = (extent - size + 1 for extent in images.shape[1:3])
    missing = [(0, 0), (0, -height % scheme.step), (0, -width % scheme.step), (0, 0)]
    return _tiled(jnp.pad(images, missing), kernel, scheme)[:, :height, :width]


def winograd_upsampled(images: Array, kernel: Array) -> Array:
    """Doubles height and width by repetition, then convolves with a 3x3 kernel.

    The padding of one pixel is doubled too; half of it is not used.
    """
    return _tiled(images, kernel, UPSAMPLING)
