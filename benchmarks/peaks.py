"""What a device can do at most, measured: products of matrices, and copying."""

import statistics
import time

import jax
import jax.numpy as jnp


def matmul(dtype: str, size: int = 0, rounds: int = 7) -> float:
    """FLOP/s of the product of two square matrices, the median of several."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    factor = jnp.full((size, size), 1 / size, dtype)
    return 2 * size**3 / _seconds(lambda x: x @ factor, jnp.ones((size, size), dtype), rounds)


def copying(mib: int = 0, rounds: int = 7) -> float:
    """Bytes a second that are read and written, of an array far larger than caches."""
    mib = mib or (512 if jax.default_backend() == "cpu" else 4096)
    return 2 * mib * 2**20 / _seconds(lambda x: x + 1, jnp.zeros(mib * 2**18), rounds)


def _seconds(function, array, rounds: int) -> float:
    """Of a function that is applied again and again in the same memory."""
    step, times = jax.jit(function, donate_argnums=0), []
    for _ in range(rounds + 1):  # the first compiles
        start = time.perf_counter()
        array = step(array).block_until_ready()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
