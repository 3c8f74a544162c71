"""Inside the jitted step: from stored pixels to inputs, and the random views of training images.

A view is drawn apart from its use, so that the images of a pair get the same one.
"""

import jax
import jax.numpy as jnp
from jax import Array


def decode(images: Array) -> Array:
    """uint8 pixels as float32 in [-1, 1], any shape."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def draw_shifts(key: Array, count: int, shift: int) -> Array:
    """Draws a shift for each of `count` images.

    Args:
      key: a PRNG key.
      count: number of images.
      shift: the most pixels in each direction.

    Returns:
      Rows and columns to shift up and left, int32 `[count,2]`, uniform in [-shift, shift].
    """
    return jax.random.randint(key, (count, 2), -shift, shift + 1)


def apply_shifts(images: Array, shifts: Array, shift: int) -> Array:
    """Moves each image by its own shift, repeating the pixels at the edges.

    Args:
      images: `[B,H,W,C]`.
      shifts: as `draw_shifts` gives them, `[B,2]`.
      shift: the most pixels in each direction, a Python int; 0 leaves the images as they are.

    Returns:
      `[B,H,W,C]`.
    """
    if not shift:
        return images
    margin = (shift, shift)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode="edge")

    def crop(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, shifts + shift)


def random_shift(key: Array, images: Array, shift: int) -> Array:
    """`apply_shifts` with freshly drawn shifts."""
    return apply_shifts(images, draw_shifts(key, len(images), shift), shift)
