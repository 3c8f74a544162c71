"""Inside the jitted step: from stored pixels to inputs, and the random views of training images.

A view is drawn apart from its use, so that the images of a pair get the same one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax.errors import check_choice

CROPS = (1, 10)  # of an image in evaluation


@struct.dataclass
class Views:
    """How each of `B` images is seen.

    Attributes:
      offsets: row and column at which the crop of the padded image begins, int32 `[B,2]`.
      flipped: whether left and right change places, bool `[B]`.
    """

    offsets: Array
    flipped: Array


def decode(images: Array) -> Array:
    """uint8 pixels as float32 in [-1, 1], any shape."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def encode(images: Array) -> Array:
    """float32 images in [-1, 1] as uint8, the inverse of `decode`."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def crop_size(size: int, settings: ConfigDict) -> int:
    """Height and width of what the networks see of images of `size`: `crop`, or all of it."""
    return settings.crop or size


def draw_views(key: Array, count: int, size: int, settings: ConfigDict) -> Views:
    """Draws a view for each of `count` images.

    Args:
      key: a PRNG key.
      count: number of images.
      size: their height and width.
      settings: `config.augment`: `shift` pixels at most in each direction, then a crop of
        `crop` pixels (0: none), then a `flip` of every second image.

    Returns:
      Views, every possible place of the crop as likely as another.
    """
    places = size + 2 * settings.shift - crop_size(size, settings) + 1
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (count, 2), 0, places)
    flipped = jax.random.bernoulli(flip_key, shape=(count,)) & settings.flip
    return Views(offsets, flipped)


def apply_views(images: Array, views: Views, settings: ConfigDict) -> Array:
    """Crops and flips each image as its view says.

    Args:
      images: `[B,H,W,C]`, square.
      views: of the same number of images, as `draw_views` gives them.
      settings: those they were drawn with.

    Returns:
      `[B,crop,crop,C]`.
    """
    size, margin = images.shape[1], (settings.shift, settings.shift)
    crop = crop_size(size, settings)
    if settings.shift:
        images = jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode="edge")
    if crop < images.shape[1]:

        def cut(image: Array, start: Array) -> Array:
            return jax.lax.dynamic_slice(
                image, (start[0], start[1], 0), (crop, crop, image.shape[2])
            )

        images = jax.vmap(cut)(images, views.offsets)
    if settings.flip:
        images = jnp.where(views.flipped[:, None, None, None], images[:, :, ::-1], images)
    return images


def random_view(key: Array, images: Array, settings: ConfigDict) -> Array:
    """`apply_views` with freshly drawn views."""
    views = draw_views(key, len(images), images.shape[1], settings)
    return apply_views(images, views, settings)


def recolour(key: Array, images: Array, strength: float | np.ndarray) -> Array:
    """Gives each image other colours: x becomes `x + N x`, within [-1, 1].

    N, `[3,3]`, is random, another for each image: colours turn about middle grey, are inverted, or
    gain and lose contrast.

    Args:
      key: a PRNG key.
      images: `[B,H,W,3]` in [-1, 1].
      strength: standard deviation of N's entries, which are normal, for all images, or `[B]`; 0
        leaves an image as it is.
    """
    changes = jax.random.normal(key, (len(images), 3, 3)) * jnp.reshape(strength, (-1, 1, 1))
    return jnp.clip(images + jnp.einsum("bhwc,bcd->bhwd", images, changes), -1, 1)


def evaluation_views(images: Array, settings: ConfigDict, crops: int) -> Array:
    """The views that an image is judged by.

    Args:
      images: `[B,H,W,C]`, square.
      settings: `config.augment`.
      crops: 1 for the crop in the centre; 10 for the four corners, the centre, and all flipped.

    Returns:
      `[crops,B,crop,crop,C]`.

    Raises:
      ValueError: if `crops` is neither.
    """
    check_choice("evaluate.crops", crops, CROPS)
    last = images.shape[1] - crop_size(images.shape[1], settings)
    centre = (last // 2, last // 2)
    starts = [centre] if crops == 1 else [(0, 0), (0, last), (last, 0), (last, last), centre]
    size = crop_size(images.shape[1], settings)
    views = [images[:, top : top + size, left : left + size] for top, left in starts]
    if crops == 10:
        views += [view[:, :, ::-1] for view in views]
    return jnp.stack(views)
