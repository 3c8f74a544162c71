"""Section 3.3: the posterior is a constant, the filter a mask, the refresh a floor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daaa_jax import em, losses


def normal(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def probabilities_of(seed, *shape):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)


# Eq. 8


def test_posterior_is_the_softmax():
    logits = normal(0, 5, 4)
    want = []
    for row in logits.astype(np.float64):
        weights = [np.exp(z) for z in row]
        want.append([w / sum(weights) for w in weights])
    np.testing.assert_allclose(jax.jit(em.posterior)(logits), want, rtol=1e-5)


def test_posterior_has_no_gradient_even_inside_the_loss():
    logits, posterior_logits = normal(1, 5, 4), normal(2, 5, 4)
    gradient = jax.jit(
        jax.grad(lambda z: losses.soft_cross_entropy(logits, em.posterior(z)).sum())
    )(posterior_logits)
    assert not np.asarray(gradient).any()


def test_posterior_of_huge_or_bfloat16_logits_is_a_float32_distribution():
    np.testing.assert_array_equal(em.posterior(jnp.array([[1e4, -1e4]])), [[1, 0]])
    posterior = em.posterior(normal(3, 50, 31).astype(jnp.bfloat16))
    assert posterior.dtype == jnp.float32
    np.testing.assert_allclose(posterior.sum(-1), 1, rtol=1e-6)


# Filter B


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95, 1.0])
def test_keep_mask_marks_confident_samples(threshold):
    posterior = np.concatenate([probabilities_of(4, 40, 3), [[1, 0, 0], [0.5, 0.5, 0]]])
    mask = jax.jit(em.keep_mask)(posterior, threshold)
    assert mask.shape == (42,)
    want = [float(max(row) >= np.float32(threshold)) for row in posterior.astype(np.float32)]
    np.testing.assert_array_equal(mask, want)


def test_threshold_zero_keeps_all_and_above_one_none():
    posterior = probabilities_of(5, 10, 3)
    assert em.keep_mask(posterior, 0.0).all()
    assert not em.keep_mask(posterior, 1.001).any()


def test_masking_equals_filtering():
    logits, posterior = normal(6, 40, 3), probabilities_of(7, 40, 3)
    mask = em.keep_mask(posterior, 0.7)
    kept = posterior.max(-1) >= 0.7
    assert 0 < kept.sum() < 40
    loss, gradient = jax.value_and_grad(
        lambda z: (mask * losses.soft_cross_entropy(z, posterior)).sum()
    )(logits)
    filtered_loss, filtered_gradient = jax.value_and_grad(
        lambda z: losses.soft_cross_entropy(z, posterior[kept]).sum()
    )(logits[kept])
    np.testing.assert_allclose(loss, filtered_loss, rtol=1e-6)
    np.testing.assert_allclose(gradient[kept], filtered_gradient, rtol=1e-5, atol=1e-7)
    assert not np.asarray(gradient)[~kept].any()


# Refresh A


@pytest.mark.parametrize("every", [1, 3, 4])
def test_posterior_network_is_the_target_of_the_last_refresh(every):
    """theta_post(t) = theta(floor(t / N) N), parameters and batch statistics both."""

    def target_after(step):
        value = jnp.float32(step)
        return {"params": {"w": value * jnp.ones(2)}, "batch_stats": {"mean": -value}}

    refresh = jax.jit(em.refresh, static_argnums=3)
    posterior = target_after(0)
    for step in range(1, 13):
        posterior = refresh(posterior, target_after(step), step, every)
        jax.tree.map(np.testing.assert_array_equal, posterior, target_after(step // every * every))


def test_refresh_counts_whole_steps():
    with pytest.raises(ValueError, match="not 0"):
        em.refresh({}, {}, 1, 0)
