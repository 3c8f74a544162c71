"""Learning rates are pure functions of the step, restarted every so many updates or never."""

import jax
import numpy as np
import optax
import pytest

from daaa_jax import schedules

KINDS = ("constant", "progress", "iteration", "linear")


def twin(kind, base, step, length, decay_fraction=0.5):
    """The rate at `step` of a run, or from a restart on, of `length` steps."""
    match kind:
        case "constant":
            return base
        case "progress":
            return base / (1 + 10 * step / length) ** 0.75
        case "iteration":
            return base / (1 + 0.001 * step) ** 0.75
        case "linear":
            first = length * (1 - decay_fraction)
            return base if step <= first else base * (length - step) / (length - first)


@pytest.mark.parametrize("kind", KINDS)
def test_restarted_rate_follows_the_steps_since_the_restart(kind):
    schedule = jax.jit(schedules.make(kind, 0.3, total_steps=28, restart_every=7))
    for step in range(28):
        np.testing.assert_allclose(schedule(step), twin(kind, 0.3, step % 7, 7), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{"restart_every": None}, {}])
def test_rate_without_restart_follows_the_step_within_the_run(kind, settings):
    schedule = jax.jit(schedules.make(kind, 0.3, total_steps=28, **settings))
    for step in range(28):
        np.testing.assert_allclose(schedule(step), twin(kind, 0.3, step, 28), rtol=1e-5)


def test_progress_falls_to_a_sixth_within_a_round_and_iteration_hardly():
    """What tells JAN's text from its released solver, over a round of 200 steps."""
    progress = schedules.make("progress", 1.0, total_steps=4000, restart_every=200)
    iteration = schedules.make("iteration", 1.0, total_steps=4000, restart_every=200)
    assert progress(0) == iteration(0) == progress(200) == 1
    np.testing.assert_allclose(progress(199), 0.17, atol=0.005)
    np.testing.assert_allclose(iteration(199), 0.87, atol=0.005)


@pytest.mark.parametrize("decay_fraction", [0.0, 0.25, 0.5, 1.0])
def test_linear_rate_is_constant_then_falls_to_zero_at_the_end(decay_fraction):
    schedule = schedules.make("linear", 2e-4, total_steps=40, decay_fraction=decay_fraction)
    rates = [float(schedule(step)) for step in range(42)]
    want = [twin("linear", 2e-4, step, 40, decay_fraction) for step in range(40)]
    np.testing.assert_allclose(rates[:40], want, rtol=1e-5)
    assert all(rate > 0 for rate in rates[:40])
    assert rates[40] == rates[41] == 0


def test_rate_stays_after_the_end_of_the_run():
    schedule = schedules.make("progress", 1.0, total_steps=10)
    assert schedule(10) == schedule(1000) == np.float32(11**-0.75)


@pytest.mark.parametrize("kind", KINDS)
def test_rate_is_a_float32_scalar(kind):
    rate = schedules.make(kind, 1, total_steps=10, restart_every=5)(3)
    assert rate.shape == ()
    assert rate.dtype == np.float32


def test_optax_takes_the_schedule_and_only_the_rate_restarts():
    optimiser = optax.sgd(schedules.make("progress", 1.0, total_steps=9, restart_every=3), 0.5)
    state = optimiser.init(0.0)
    momentum = 0.0
    for step in range(9):
        update, state = jax.jit(optimiser.update)(1.0, state)
        momentum = 1 + 0.5 * momentum
        np.testing.assert_allclose(update, -momentum * twin("progress", 1, step % 3, 3), rtol=1e-5)


def test_wrong_settings_are_errors_at_once():
    with pytest.raises(ValueError, match="cosine.*progress"):
        schedules.make("cosine", 1.0, total_steps=10)
    with pytest.raises(ValueError, match="not 0"):
        schedules.make("constant", 1.0, total_steps=10, restart_every=0)
    with pytest.raises(ValueError, match="not 1.5"):
        schedules.make("linear", 1.0, total_steps=10, decay_fraction=1.5)
