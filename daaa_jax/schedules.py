"""Learning rates: functions of the step, restarted at each sync of M^post or not (C)."""

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
    """The learning rate for the update that follows so many updates.

    With restarts the rate depends on `step % restart_every` alone; an optimiser's moments go on.
    Let `s` be the steps since the last restart (without restarts: since the start) and `p` in
    [0, 1) their share of `restart_every` (of `total_steps`).

    Args:
      kind: `"constant"`; `"progress"`, `base (1 + 10 p)^-0.75`, the text of JAN; `"iteration"`,
        `base (1 + 0.001 s)^-0.75`, its released solver; `"linear"`, constant, then linear to 0,
        as CycleGAN.
      base: initial learning rate.
      total_steps: length of the run, after which the rate stays.
      restart_every: updates between two restarts; None for none, which is EM-C.
      decay_fraction: the part of the length over which `"linear"` decays, at its end, in [0, 1].

    Raises:
      ValueError: if `kind` is unknown, or a length or fraction is out of range.
    """
    check_choice("optimizer.schedule", kind, KINDS)
    if not 0 <= decay_fraction <= 1:
        raise ValueError(f"decay_fraction must be in [0, 1], not {decay_fraction}")
    length = total_steps if restart_every is None else restart_every
    if length < 1:
        raise ValueError(f"a schedule needs a length of 1 or more steps, not {length}")

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
    return schedule if restart_every is None else lambda step: schedule(step % restart_every)
