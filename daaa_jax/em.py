"""The adversarial EM of section 3.3: posterior, filter (B), asynchronous refresh (A)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array


def posterior(logits: Array) -> Array:
    """Class posterior `p_post(z | x)` of the frozen posterior network M^post (Eq. 8).

    Args:
      logits: of M^post, `[B, K]`.

    Returns:
      `[B, K]`, float32, without gradient: within a round the targets are constants.
    """
    return jax.lax.stop_gradient(jax.nn.softmax(logits.astype(jnp.float32), axis=-1))


def keep_mask(posterior: Array, threshold: float) -> Array:
    """Which samples are confident enough to learn from (B).

    A mask, not a filter: shapes stay static under `jit`.

    Args:
      posterior: class probabilities, `[B, K]`.
      threshold: `p_t`; 0 keeps every sample.

    Returns:
      `[B]`, float32: 1 where `max_z p(z | x) >= p_t`, else 0.
    """
    confidence = jnp.max(posterior.astype(jnp.float32), axis=-1)
    return (confidence >= threshold).astype(jnp.float32)


def refresh(posterior_variables: Any, target_variables: Any, step: Array | int, every: int) -> Any:
    """The variables of M^post after an update: `theta_post(t) = theta(floor(t / N) N)` (A).

    Args:
      posterior_variables: those that M^post has, parameters and batch statistics.
      target_variables: those of the target network after `step` updates, same structure.
      step: number `t` of updates made, from 1.
      every: number `N` of updates between refreshes; 1 is EM without the asynchronous update.

    Returns:
      `target_variables` where `every` divides `step`, else `posterior_variables`.

    Raises:
      ValueError: if `every` is less than 1.
    """
    if every < 1:
        raise ValueError(f"the posterior network is refreshed every 1 or more steps, not {every}")
    return optax.periodic_update(target_variables, posterior_variables, jnp.asarray(step), every)
