"""The image pool of the released CycleGAN, one and several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import pool_twin

from daaa_jax.training import image_pools


@pytest.mark.parametrize(("capacity", "batch"), [(7, 3), (5, 5), (6, 4)])
def test_pool_is_that_of_the_released_cyclegan(capacity, batch):
    pools = image_pools.empty_pools(1, capacity, (1, 1, 3))
    stored = []
    for step in range(6):
        images = np.random.default_rng(step).normal(size=(batch, 1, 1, 3)).astype(np.float32)
        key = jax.random.fold_in(jax.random.key(4), step)
        pools, shown = jax.jit(image_pools.replay)(pools, images, key)
        np.testing.assert_array_equal(shown, pool_twin(stored, capacity, images, key))
        assert pools.filled == len(stored)
        np.testing.assert_array_equal(pools.images[0, : len(stored)], stored)


def test_each_of_several_pools_takes_its_part_of_the_batch():
    """As two batches of half the size with a pool each would, the same chance given."""
    key = jax.random.key(3)
    pools = image_pools.empty_pools(2, 6, (1, 1, 1))
    stored = [[], []]
    for first in (1, 9, 17):
        key = jax.random.fold_in(key, first)
        images = jnp.arange(first, first + 8.0).reshape(8, 1, 1, 1)
        pools, shown = image_pools.replay(pools, images, key)
        keys = jax.random.split(key, 8)
        for number in range(2):
            half = slice(4 * number, 4 * number + 4)
            expected = pool_twin(stored[number], 3, images[half], keys[half])
            np.testing.assert_array_equal(shown[half], expected)
            np.testing.assert_array_equal(pools.images[number], stored[number])


def test_full_pool_shows_a_past_image_half_of_the_time_and_each_equally_often():
    capacity, batch = 10, 4000
    pools = image_pools.ImagePools(
        -1 - jnp.arange(10.0).reshape(1, capacity, 1, 1, 1), jnp.full(1, capacity)
    )
    images = jnp.arange(float(batch)).reshape(batch, 1, 1, 1)
    pools, shown = image_pools.replay(pools, images, jax.random.key(0))
    swapped = np.asarray(shown != images).ravel()
    assert 0.46 < swapped.mean() < 0.54
    # A swapped image is one that was seen before and is shown once; the last ones remain.
    assert len(set(np.asarray(shown)[swapped].ravel())) == swapped.sum()
    assert (np.asarray(shown)[swapped] < np.asarray(images)[swapped]).all()
    assert np.asarray(pools.images).min() > batch / 2
