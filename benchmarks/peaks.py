"""Measured peaks of a device: matrix products and memory bandwidth."""

import statistics
import time

import jax
import jax.numpy as jnp


def matmul(dtype: str, size: int = 0, rounds: int = 7) -> float:
    """FLOP/s of a product of square matrices, median of `rounds`."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    factor = jnp.full((size, size), 1 / size, dtype)
    return 2 * size**3 / _seconds(lambda x: x @ factor, jnp.ones((size, size), dtype), rounds)


def copying(mib: int = 0, rounds: int = 7) -> float:
    """Bytes read and written per second, on an array much larger than the caches."""
    mib = mib or (512 if jax.default_backend() == "cpu" else 4096)
    return 2 * mib * 2**20 / _seconds(lambda x: x + 1, jnp.zeros(mib * 2**18), rounds)


def _seconds(function, array, rounds: int) -> float:
    """Median seconds of a function that is applied repeatedly in the same memory."""
    step, times = jax.jit(function, donate_argnums=0), []
    for _ in range(rounds + 1):  # the first compiles
        start = time.perf_counter()
        array = step(array).block_until_ready()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
