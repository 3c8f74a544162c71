"""Converts stored pixels to network inputs, and augments training images, in the jitted step.

Views are drawn separately from their use, so that both images of a pair get the same one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from daaa_jax.errors import check_choice

CROPS = (1, 10)  # crops per image in evaluation


class Views(struct.PyTreeNode):
    """Crop and flip of each of `B` images.

    Attributes:
      offsets: row and column of the crop's first pixel in the padded image, `[B,2]`; int32, or
        float32 of crops that are resized.
      flipped: whether to mirror the image left to right, bool `[B]`.
      sizes: height and width of crops that are resized, in pixels, float32 `[B,2]`; else None.
    """

    offsets: Array
    flipped: Array
    sizes: Array | None = None


def decode(images: ArrayLike) -> Array:
    """Converts uint8 pixels, of any shape, to float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def encode(images: Array) -> Array:
    """Converts float32 images in [-1, 1] to uint8; the inverse of `decode`."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def crop_size(size: int, settings: ConfigDict) -> int:
    """Height and width of the network input: `crop`, or `size`, the image's, if `crop` is 0."""
    return settings.crop or size


def draw_views(key: Array, count: int, size: int, settings: ConfigDict) -> Views:
    """Draws a view for each of `count` images.

    Args:
      key: a PRNG key.
      count: number of images.
      size: height and width of the images.
      settings: `config.augment`: a shift of at most `shift` pixels in each direction, then a crop
        of `crop` pixels (0: none), then, if `flip`, a flip with probability 1/2. If `area` is below
        1, the crop has a uniformly drawn share of the area, from `area` to 1, and a log-uniformly
        drawn aspect ratio from 3/4 to 4/3, at most the image, and is resized to `crop` pixels
        (Szegedy et al., Going deeper with convolutions, CVPR 2015).

    Returns:
      Views; all possible crop positions are equally likely.
    """
    padded = size + 2 * settings.shift
    crop_key, flip_key = jax.random.split(key)
    flipped = jax.random.bernoulli(flip_key, shape=(count,)) & settings.flip
    if settings.area == 1:
        places = padded - crop_size(size, settings) + 1
        return Views(jax.random.randint(crop_key, (count, 2), 0, places), flipped)
    area_key, aspect_key, place_key = jax.random.split(crop_key, 3)
    side = padded * jnp.sqrt(jax.random.uniform(area_key, (count, 1), minval=settings.area))
    stretch = jax.random.uniform(aspect_key, (count, 1), minval=-1, maxval=1) * np.log(4 / 3) / 2
    sizes = jnp.minimum(side * jnp.exp(jnp.concatenate([stretch, -stretch], axis=1)), padded)
    offsets = jax.random.uniform(place_key, (count, 2)) * (padded - sizes)
    return Views(offsets, flipped, sizes)


def apply_views(images: Array, views: Views, settings: ConfigDict) -> Array:
    """Crops, resizes (bilinear, with antialiasing) and flips each image according to its view.

    Args:
      images: `[B,H,W,C]`, square; floats if the crops are resized.
      views: one per image, from `draw_views`.
      settings: the settings that the views were drawn with.

    Returns:
      `[B,crop,crop,C]`.
    """
    size, margin = images.shape[1], (settings.shift, settings.shift)
    crop = crop_size(size, settings)
    shape = (crop, crop, images.shape[3])
    if settings.shift:
        images = jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode="edge")
    if views.sizes is not None:

        def resize(image: Array, start: Array, size: Array) -> Array:
            scale = crop / size
            return jax.image.scale_and_translate(
                image, shape, (0, 1), scale, -start * scale, "linear"
            )

        images = jax.vmap(resize)(images, views.offsets, views.sizes)
    elif crop < images.shape[1]:

        def cut(image: Array, start: Array) -> Array:
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), shape)

        images = jax.vmap(cut)(images, views.offsets)
    if settings.flip:
        images = jnp.where(views.flipped[:, None, None, None], images[:, :, ::-1], images)
    return images


def random_view(key: Array, images: Array, settings: ConfigDict) -> Array:
    """`apply_views` with freshly drawn views."""
    views = draw_views(key, len(images), images.shape[1], settings)
    return apply_views(images, views, settings)


def recolour(key: Array, images: Array, strength: float | np.ndarray) -> Array:
    """Changes the colours of each image at random: x becomes `x + N x`, clipped to [-1, 1].

    N, `[3,3]`, is drawn for each image. It rotates the colours about middle grey, inverts them, or
    changes their contrast.

    Args:
      key: a PRNG key.
      images: `[B,H,W,3]` in [-1, 1].
      strength: standard deviation of N's normal entries, one for all images or `[B]`; 0 leaves an
        image unchanged.
    """
    changes = jax.random.normal(key, (len(images), 3, 3)) * jnp.reshape(strength, (-1, 1, 1))
    return jnp.clip(images + jnp.einsum("bhwc,bcd->bhwd", images, changes), -1, 1)


def evaluation_views(images: Array, settings: ConfigDict, crops: int) -> Array:
    """Fixed crops of each image for evaluation.

    Args:
      images: `[B,H,W,C]`, square.
      settings: `config.augment`.
      crops: 1 for the centre crop; 10 for the four corners and the centre, and all five flipped.

    Returns:
      `[crops,B,crop,crop,C]`.

    Raises:
      ValueError: if `crops` is neither 1 nor 10.
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
