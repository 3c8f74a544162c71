"""Images as matrices, and arrays that XLA writes once: what the convolutions of a CPU share."""

from jax import Array


def stored(array: Array) -> Array:
    """The same array, of finite numbers, written to memory once.

    XLA would repeat the operations that give it inside each of the many that use it, but never a
    division. That this one divides by 1 it cannot know, as 0 times an infinity is not 0; nor can it
    make a product of it, which it does with a division by one number for all.
    """
    return array / (1 + 0 * array)


def flat(array: Array) -> Array:
    """`[..., C]` as a matrix `[N, C]`."""
    return array.reshape(-1, array.shape[-1])


def matmul(array: Array, matrix: Array) -> Array:
    """`[..., C]` times `[C, F]`, as one product of matrices."""
    return (flat(array) @ matrix).reshape(*array.shape[:-1], -1)
