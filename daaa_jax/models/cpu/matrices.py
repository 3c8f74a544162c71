"""Helpers of the CPU convolutions: images as matrices, and arrays that XLA computes once."""

import jax.numpy as jnp
from jax import Array


def stored(array: Array) -> Array:
    """Returns the same array, of finite numbers, written to memory once.

    XLA repeats the operations that compute an array inside each operation that uses it, but never
    repeats a division. It cannot remove this division by 1, as 0 times an infinity is not 0, nor
    turn it into a product, as it does for division by a scalar.
    """
    return array / (1 + 0 * array)


def flat(array: Array) -> Array:
    """`[..., C]` as a matrix `[N, C]`."""
    return array.reshape(-1, array.shape[-1])


def matmul(array: Array, matrix: Array) -> Array:
    """`[..., C]` times `[C, F]`, as one product of matrices."""
    return (flat(array) @ matrix).reshape(*array.shape[:-1], -1)


def padded(images: Array, axis: int, before: int, after: int) -> Array:
    """Images `[B, H, W, C]` with zeros before and after them along one axis."""
    widths = [(0, 0)] * images.ndim
    widths[axis] = (before, after)
    return jnp.pad(images, widths)
