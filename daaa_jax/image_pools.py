"""The pools of past translations that CycleGAN's discriminators are shown (section 3.1).

As the released CycleGAN has it (Shrivastava et al., 2017), but as arrays inside the jitted step,
and several of them where a batch lies on several devices.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class ImagePools:
    """Past translations: `images` `[k,P,H,W,3]`, of which the first `filled` of each hold one."""

    images: Array
    filled: Array


def empty(count: int, size: int, image_shape: Sequence[int]) -> ImagePools:
    """Pools that hold nothing yet.

    Args:
      count: how many, k.
      size: of all together at least.
      image_shape: `(H, W, 3)`.
    """
    each = math.ceil(size / count)
    return ImagePools(jnp.zeros((count, each, *image_shape)), jnp.zeros(count, jnp.int32))


def draw(pools: ImagePools, images: Array, key: Array) -> tuple[ImagePools, Array]:
    """Shows the discriminator past translations as well as present ones (Shrivastava et al., 2017).

    One image after another: while its pool is not full, the image enters it and is shown;
    then, with probability a half, a random one of the pool is shown, and the image replaces it.
    Each of the k pools takes B / k neighbouring images of the batch. The original has one pool,
    for which every device needs the images of all others.

    Args:
      pools: the pools before.
      images: the present translations, `[B,H,W,3]`; k divides B.
      key: a PRNG key.

    Returns:
      The pools after, and the images to show, `[B,H,W,3]`.
    """
    count, size = pools.images.shape[:2]

    def visit(pool: ImagePools, item: tuple[Array, Array]) -> tuple[ImagePools, Array]:
        image, key = item
        slot_key, coin_key = jax.random.split(key)
        filling = pool.filled < size
        swaps = jax.random.bernoulli(coin_key) & ~filling
        slot = jnp.where(filling, pool.filled, jax.random.randint(slot_key, (), 0, size))
        old = pool.images[slot]
        stored = jnp.where(filling | swaps, image, old)
        after = ImagePools(pool.images.at[slot].set(stored), pool.filled + filling)
        return after, jnp.where(swaps, old, image)

    def divide(batch: Array) -> Array:
        return batch.reshape(count, -1, *batch.shape[1:])

    items = divide(images), divide(jax.random.split(key, len(images)))
    pools, shown = jax.vmap(functools.partial(jax.lax.scan, visit))(pools, items)
    return pools, shown.reshape(images.shape)
