"""Learning rate schedules, with or without restarts at each sync of M^post (C)."""

import jax.numpy as jnp
import optax
from jax import Array

from daaa_jax.errors import check_choice

KINDS = ("constant", "progress", "iteration", "linear")


def make(
    kind: str,
    base: float,
    *,
    total_steps: int,
    restart_every: int | None = None,
    decay_fraction: float = 0.5,
) -> optax.Schedule:
    """The learning rate, float32, as a function of the number of updates made.

    With restarts the rate depends on `step % restart_every` alone; the optimiser's moments are not
    reset. Let `s` be the steps since the last restart (without restarts: since the start) and `p`
    in [0, 1) their share of `restart_every` (of `total_steps`).

    Args:
      kind: `"constant"`; `"progress"`, `base (1 + 10 p)^-0.75`, as in the paper of JAN;
        `"iteration"`, `base (1 + 0.001 s)^-0.75`, as in its release; `"linear"`, constant, then
        linear to 0, as in CycleGAN.
      base: initial learning rate.
      total_steps: number of updates in the stage; then the rate stays, except for `"iteration"`.
      restart_every: updates between two restarts; None for none, which is EM-C.
      decay_fraction: share of the length, at its end, over which `"linear"` decays, in [0, 1].

    Raises:
      ValueError: if `kind` is unknown, or a length or fraction is out of range.
    """
    check_choice("optimizer.schedule", kind, KINDS)
    if not 0 <= decay_fraction <= 1:
        raise ValueError(f"decay_fraction must be in [0, 1], not {decay_fraction}")
    length = total_steps if restart_every is None else restart_every
    if length < 1:
        raise ValueError(f"the length of a schedule must be at least 1 step, not {length}")

    def jan(step: Array | int) -> Array:
        return base * (1 + 10 * jnp.minimum(jnp.asarray(step) / length, 1.0)) ** -0.75

    def jan_release(step: Array | int) -> Array:
        return base * (1 + 0.001 * jnp.asarray(step)) ** -0.75

    decay = max(decay_fraction * length, 1.0)
    schedule = {
        "constant": optax.constant_schedule(base),
        "progress": jan,
        "iteration": jan_release,
        "linear": optax.linear_schedule(base, 0.0, decay, transition_begin=length - decay),
    }[kind]

    def rate(step: Array | int) -> Array:
        since_restart = step if restart_every is None else step % restart_every
        return jnp.asarray(schedule(since_restart), jnp.float32)

    return rate
