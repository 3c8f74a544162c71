"""Past translations that the CycleGAN's discriminators are shown again."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


class ImagePools(struct.PyTreeNode):
    """Past translations: `images` `[k,P,H,W,3]`; of each pool, the first `filled` are in use."""

    images: Array
    filled: Array


def empty_pools(count: int, size: int, image_shape: Sequence[int]) -> ImagePools:
    """Empty pools.

    Args:
      count: number of pools, k.
      size: minimum of their total size.
      image_shape: `(H, W, 3)`.
    """
    each = math.ceil(size / count)
    return ImagePools(jnp.zeros((count, each, *image_shape)), jnp.zeros(count, jnp.int32))


def replay(pools: ImagePools, images: Array, key: Array) -> tuple[ImagePools, Array]:
    """Mixes past translations into those for the discriminator (Shrivastava et al., 2017).

    For one image after another: while its pool is not full, the image is stored and returned;
    afterwards, with probability 1/2, a random image of the pool is returned and the image replaces
    it. Each of the k pools takes B / k neighbouring images of the batch. The original has one pool,
    for which every device would need the images of all others.

    Args:
      pools: the pools before.
      images: the current translations, `[B,H,W,3]`; k must divide B.

    Returns:
      The pools after, and the replayed images, `[B,H,W,3]`.
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
    pools, replayed = jax.vmap(functools.partial(jax.lax.scan, visit))(pools, items)
    return pools, replayed.reshape(images.shape)
