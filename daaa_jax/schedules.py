"""Learning rates: pure functions of the step, restarted at each sync of M^post or not (C)."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array


def learning_rate(
    kind: str,
    base: float,
    step: Array | int,
    restart_every: int | None,
    total_steps: int | None = None,
    decay_fraction: float = 0.5,
) -> Array:
    """The learning rate for the update that follows `step` updates.

    With restarts the rate depends on `step % restart_every` alone; an optimiser's moments go on.
    Let `s` be the steps since the last restart (without restarts: since the start) and `p` in
    [0, 1) their share of `restart_every` (of the run's length).

    Args:
      kind: `"constant"`; `"progress"`, `base (1 + 10 p)^-0.75`, the text of JAN; `"iteration"`,
        `base (1 + 0.001 s)^-0.75`, its released solver; `"linear"`, constant, then linear to 0,
        as CycleGAN.
      base: initial learning rate.
      step: updates made so far, scalar.
      restart_every: updates between two restarts; None for none, which is EM-C.
      total_steps: length of the run, after which the rate stays. Needed by `"progress"` and
        `"linear"` without restarts.
      decay_fraction: the part of the length over which `"linear"` decays, at its end, in [0, 1].

    Returns:
      Scalar, float32.

    Raises:
      ValueError: if `kind` is unknown, or a length or fraction is missing or out of range.
    """
    if kind not in ("constant", "progress", "iteration", "linear"):
        raise ValueError(
            f"unknown schedule {kind!r}: expected 'constant', 'progress', 'iteration' or 'linear'"
        )
    if not 0 <= decay_fraction <= 1:
        raise ValueError(f"decay_fraction must be in [0, 1], not {decay_fraction}")
    length = total_steps if restart_every is None else restart_every
    if length is None and kind in ("progress", "linear"):
        raise ValueError(f"schedule {kind!r} without restarts needs total_steps")
    if length is not None and length < 1:
        raise ValueError(f"a schedule needs a length of 1 or more steps, not {length}")

    step = jnp.asarray(step)
    if restart_every is not None:
        step = step % length
    match kind:
        case "constant":
            factor = jnp.ones((), jnp.float32)
        case "iteration":
            factor = (1 + 0.001 * step) ** -0.75
        case "progress":
            factor = (1 + 10 * jnp.minimum(step / length, 1.0)) ** -0.75
        case "linear":
            decay_steps = max(decay_fraction * length, 1.0)
            factor = jnp.clip((length - step) / decay_steps, 0.0, 1.0)
    return (base * factor).astype(jnp.float32)


def make(
    kind: str,
    base: float,
    *,
    total_steps: int,
    restart_every: int | None = None,
    decay_fraction: float = 0.5,
) -> Callable[[Array | int], Array]:
    """A schedule for optax with the settings of a run; see `learning_rate`.

    Returns:
      Function of the step.

    Raises:
      ValueError: at once, if the settings are wrong.
    """

    def schedule(step: Array | int) -> Array:
        return learning_rate(kind, base, step, restart_every, total_steps, decay_fraction)

    schedule(0)
    return schedule
