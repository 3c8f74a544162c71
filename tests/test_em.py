"""Section 3.3: the posterior is a constant, the filter a mask, the sync of M_post a floor."""

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


# The paired posterior, ours


def paired_twin(logits, other_logits, weight, prior):
    """Bayes' rule for two images that are independent given the class, in float64."""
    own, other = (np.exp(np.asarray(z, np.float64)) for z in (logits, other_logits))
    own, other = (p / p.sum(-1, keepdims=True) for p in (own, other))
    product = own * (other / prior) ** weight
    return product / product.sum(-1, keepdims=True)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prior", [np.full(4, 0.25), np.array([0.7, 0.1, 0.1, 0.1])])
def test_paired_posterior_is_a_product_of_experts(weight, prior):
    own, other = normal(0, 9, 4, scale=3.0), normal(1, 9, 4, scale=3.0)
    found = jax.jit(em.paired_posterior)(own, other, weight, np.log(prior))
    np.testing.assert_allclose(found, paired_twin(own, other, weight, prior), rtol=2e-5, atol=1e-7)
    # Log probabilities serve as logits.
    logs = jax.nn.log_softmax(own), jax.nn.log_softmax(other)
    again = em.paired_posterior(*logs, weight, np.log(prior))
    np.testing.assert_allclose(again, found, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("compiled", [True, False])
def test_paired_posterior_of_weight_0_is_that_of_the_image_bit_for_bit(compiled):
    wrap = jax.jit if compiled else lambda f: f
    own, other = normal(2, 200, 31, scale=20.0), normal(3, 200, 31, scale=20.0)
    found = wrap(em.paired_posterior)(own, other, jnp.float32(0), -3.0)
    np.testing.assert_array_equal(found, wrap(em.posterior)(own))


def test_paired_posterior_of_weight_1_is_symmetric():
    own, other = normal(4, 50, 10, scale=8.0), normal(5, 50, 10, scale=8.0)
    np.testing.assert_array_equal(em.paired_posterior(own, other), em.paired_posterior(other, own))


def test_paired_posterior_of_huge_or_bfloat16_logits_is_a_float32_distribution():
    far = jnp.array([[1e4, -1e4, 0.0], [1e4, 1e4, 1e4]])
    found = em.paired_posterior(far, -far, 1.0, np.log([0.8, 0.1, 0.1]))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    half = normal(6, 50, 31).astype(jnp.bfloat16)
    found = em.paired_posterior(half, half)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)


def test_paired_posterior_has_no_gradient_by_either_image_or_its_weight():
    logits, own, other = normal(7, 5, 4), normal(8, 5, 4), normal(9, 5, 4)

    def loss(own, other, weight):
        return losses.soft_cross_entropy(logits, em.paired_posterior(own, other, weight)).sum()

    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(own, other, 0.5):
        assert not np.asarray(gradient).any()


def certain(classes, confidence=0.99, count=4):
    rest = (1 - confidence) / (count - 1)
    return np.where(np.eye(count)[classes] > 0, confidence, rest)


def test_only_confident_images_are_counted():
    classes = np.array([0, 0, 0, 1, 2, 3])
    posteriors = certain(classes)
    posteriors[5] = certain(3, confidence=0.949)
    counts = em.count_views(
        posteriors, own=certain([0, 1, 1, 1, 2, 0]), translated=certain([0, 0, 1, 1, 2, 0])
    )
    assert counts == em.ViewCounts(confident=5, contradictions=1, own=2, others=2)


def test_weight_follows_from_the_smallest_of_three_bounds():
    counts = {"confident": 99, "contradictions": 1}
    for own, others, tolerance, bound in (
        (49, 79, 0.2, 0.2),
        (9, 79, 0.2, 0.1),  # without a translation few are contradicted
        (49, 7, 0.2, 0.08),  # one class is nearly all
        (49, 79, 0.04, 0.04),
    ):
        found = em.ViewCounts(**counts, own=own, others=others)
        assert found.errors == {"e": 0.02, "e0": (own + 1) / 100, "e1": (others + 1) / 100}
        assert found.weight(tolerance) == np.float32(1 - 0.02 / bound)


@pytest.mark.parametrize(
    "counts", [(0, 0, 0, 0), (99, 99, 99, 99), (99, 50, 50, 80), (99, 5, 5, 80), (99, 5, 80, 5)]
)
def test_second_view_that_is_no_better_than_none_or_than_one_class_has_no_weight(counts):
    assert em.ViewCounts(*counts).weight(0.2) == 0


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


# The sync of M_post (A)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_posterior_network_is_the_target_of_the_last_sync(every):
    """theta_post(t) = theta(floor(t / N) N), parameters and batch statistics both."""

    def target_after(step):
        value = jnp.float32(step)
        return {"params": {"w": value * jnp.ones(2)}, "batch_stats": {"mean": -value}}

    refresh = jax.jit(em.refresh, static_argnums=3)
    posterior = target_after(0)
    for step in range(1, 13):
        posterior = refresh(posterior, target_after(step), step, every)
        jax.tree.map(np.testing.assert_array_equal, posterior, target_after(step // every * every))


@pytest.mark.parametrize(
    ("decay", "wanted"),
    [
        (0.0, [2, 4, 6, 8, 10]),
        (0.5, [2, 3, 4.5, 6.25, 8.125]),  # the mean of two networks, then half of each later one
        (0.75, [2, 3, 4, 5, 6.25]),
        (1.0, [2, 3, 4, 5, 6]),  # the mean of all
    ],
)
def test_with_a_decay_the_posterior_network_is_a_moving_average_of_those_at_the_syncs(
    decay, wanted
):
    """Parameters and batch statistics both; the initial network, -9, has no weight."""
    posterior = {"params": jnp.full(2, -9.0), "batch_stats": jnp.full(2, 9.0)}
    refresh, found = jax.jit(em.refresh, static_argnums=(3, 4)), []
    for step in range(1, 12):
        target = {"params": jnp.full(2, step, float), "batch_stats": jnp.full(2, -step, float)}
        posterior = refresh(posterior, target, step, 2, decay)
        np.testing.assert_array_equal(posterior["batch_stats"], -posterior["params"])
        found.append(float(posterior["params"][0]))
    assert found[0] == -9 and found[1::2] == found[2::2] == wanted


def test_less_than_one_step_between_syncs_is_refused():
    with pytest.raises(ValueError, match=r"\b0\b"):
        em.refresh({}, {}, 1, 0)
