"""The loss terms agree with slow NumPy twins, and stay finite where floating point is hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import approx_fprime

from daaa_jax import losses

BATCH, CLASSES = 6, 4


def normal(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def assert_gradient(function, twin, at):
    """The gradient of `function` under jit is that of its float64 twin by finite differences."""
    flat = approx_fprime(
        at.ravel().astype(np.float64), lambda x: twin(x.reshape(at.shape)), epsilon=1e-6
    )
    np.testing.assert_allclose(
        jax.jit(jax.grad(function))(at), flat.reshape(at.shape), rtol=2e-3, atol=2e-5
    )


# Eq. 1


def adversarial_twin(logits, is_real, kind):
    total = 0.0
    for logit in logits.astype(np.float64).ravel():
        probability = 1 / (1 + np.exp(-logit))
        if kind == "lsgan":
            total += (logit - (1 if is_real else 0)) ** 2
        else:
            total -= np.log(probability if is_real else 1 - probability)
    return total / logits.size


@pytest.mark.parametrize("kind", ["lsgan", "vanilla"])
@pytest.mark.parametrize("is_real", [True, False])
def test_adversarial_loss_is_the_mean_over_patches(kind, is_real):
    logits = normal(0, 2, 3, 3, 1)
    value = jax.jit(losses.adversarial_loss, static_argnums=(1, 2))(logits, is_real, kind)
    assert value.shape == ()
    np.testing.assert_allclose(value, adversarial_twin(logits, is_real, kind), rtol=1e-5)
    assert_gradient(
        lambda x: losses.adversarial_loss(x, is_real, kind),
        lambda x: adversarial_twin(x, is_real, kind),
        logits,
    )


@pytest.mark.parametrize("is_real", [True, False])
def test_vanilla_loss_of_a_certain_discriminator_is_finite(is_real):
    logits = jnp.array([-500.0, 0.0, 500.0])
    value, gradient = jax.value_and_grad(losses.adversarial_loss)(logits, is_real, "vanilla")
    np.testing.assert_allclose(value, (500 + np.log(2)) / 3, rtol=1e-6)
    sign = -1 if is_real else 1
    np.testing.assert_allclose(gradient * 3, np.where(sign * logits > 0, sign, [0, sign / 2, 0]))


def test_unknown_adversarial_loss_is_an_error():
    with pytest.raises(ValueError, match=r"pair\.adversarial.*wgan.*lsgan"):
        losses.adversarial_loss(jnp.zeros(3), True, "wgan")


# Eq. 2


def test_cycle_loss_is_the_mean_absolute_error():
    images, reconstructed = normal(1, 2, 4, 4, 3), normal(2, 2, 4, 4, 3)
    want = sum(
        abs(float(a) - float(b)) for a, b in zip(images.flat, reconstructed.flat, strict=True)
    )
    value = jax.jit(losses.cycle_loss)(images, reconstructed)
    np.testing.assert_allclose(value, want / images.size, rtol=1e-6)


def test_cycle_loss_of_a_perfect_reconstruction_has_no_gradient():
    images = normal(3, 2, 4, 4, 3)
    value, gradient = jax.value_and_grad(losses.cycle_loss)(images, images)
    assert value == 0
    assert not np.asarray(gradient).any()


def test_cycle_loss_does_not_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\).*\(2, 4, 4, 1\)"):
        losses.cycle_loss(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 1)))


# Eq. 6, 10, 11


def cross_entropy_twin(logits, labels):
    probabilities = softmax(logits.astype(np.float64))
    return np.array([-np.log(row[label]) for row, label in zip(probabilities, labels, strict=True)])


def soft_cross_entropy_twin(logits, posterior):
    probabilities = softmax(logits.astype(np.float64))
    return -(posterior.astype(np.float64) * np.log(probabilities)).sum(-1)


def test_cross_entropy_is_by_sample():
    logits, labels = normal(4, BATCH, CLASSES), np.array([0, 3, 1, 2, 2, 0])
    value = jax.jit(losses.cross_entropy)(logits, labels)
    np.testing.assert_allclose(value, cross_entropy_twin(logits, labels), rtol=1e-5)
    assert_gradient(
        lambda x: losses.cross_entropy(x, labels).sum(),
        lambda x: cross_entropy_twin(x, labels).sum(),
        logits,
    )


def test_soft_cross_entropy_is_by_sample():
    logits, posterior = normal(5, BATCH, CLASSES), softmax(normal(6, BATCH, CLASSES))
    value = jax.jit(losses.soft_cross_entropy)(logits, posterior)
    np.testing.assert_allclose(value, soft_cross_entropy_twin(logits, posterior), rtol=1e-5)
    assert_gradient(
        lambda x: losses.soft_cross_entropy(x, posterior).sum(),
        lambda x: soft_cross_entropy_twin(x, posterior).sum(),
        logits,
    )


def test_soft_cross_entropy_of_a_certain_posterior_is_cross_entropy():
    logits, labels = normal(7, BATCH, CLASSES), jnp.array([0, 3, 1, 2, 2, 0])
    np.testing.assert_allclose(
        losses.soft_cross_entropy(logits, jax.nn.one_hot(labels, CLASSES)),
        losses.cross_entropy(logits, labels),
        rtol=1e-6,
    )


def test_cross_entropies_of_huge_logits_are_finite():
    logits, labels = jnp.array([[1e4, -1e4, 0.0]]), jnp.array([1])
    hard, hard_gradient = jax.value_and_grad(lambda x: losses.cross_entropy(x, labels).sum())(
        logits
    )
    posterior = jax.nn.one_hot(labels, 3)
    soft, soft_gradient = jax.value_and_grad(
        lambda x: losses.soft_cross_entropy(x, posterior).sum()
    )(logits)
    assert hard == soft == 2e4
    np.testing.assert_array_equal(hard_gradient, [[1, -1, 0]])
    np.testing.assert_array_equal(soft_gradient, [[1, -1, 0]])


def test_cross_entropies_of_bfloat16_logits_are_float32():
    logits = normal(8, BATCH, CLASSES).astype(jnp.bfloat16)
    labels, posterior = np.zeros(BATCH, np.int32), softmax(normal(9, BATCH, CLASSES))
    hard = losses.cross_entropy(logits, labels)
    soft = losses.soft_cross_entropy(logits, posterior)
    assert hard.dtype == soft.dtype == jnp.float32
    exact = logits.astype(np.float32)
    np.testing.assert_allclose(hard, cross_entropy_twin(exact, labels), rtol=1e-5)
    np.testing.assert_allclose(soft, soft_cross_entropy_twin(exact, posterior), rtol=1e-5)


def test_cross_entropies_do_not_broadcast():
    with pytest.raises(ValueError, match=r"\(1,\).*\(3, 4\)"):
        losses.cross_entropy(jnp.zeros((3, 4)), jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(1, 4\)"):
        losses.soft_cross_entropy(jnp.zeros((3, 4)), jnp.zeros((1, 4)))


# Table 4

mmd, jmmd = jax.jit(losses.mmd), jax.jit(losses.jmmd)


def squared_distances(points):
    points = points.astype(np.float64)
    return np.array([[((p - q) ** 2).sum() for q in points] for p in points])


def mean_distances(xs, ys):
    """The squared distances of a layer, averaged over all pairs of two different samples."""
    means = []
    for x, y in zip(xs, ys, strict=True):
        distances = squared_distances(np.concatenate([x, y]))
        means.append(distances.sum() / (len(distances) * (len(distances) - 1)))
    return means


def jmmd_twin(xs, ys, means=None):
    """As the released JAN, with the mean of its Gaussians; `means` holds the bandwidths fixed."""
    kernel = 1.0
    for x, y, mean in zip(xs, ys, means or mean_distances(xs, ys), strict=True):
        distances = squared_distances(np.concatenate([x, y]))
        kernel = kernel * np.mean(
            [np.exp(-distances / (mean / 2 ** (5 // 2) * 2**i)) for i in range(5)], axis=0
        )
    n = len(xs[0])
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def layers(seed, shift=0.0, batch=BATCH):
    return [normal(seed, batch, 5) + shift, normal(seed + 50, batch, 3, scale=10.0) + 10 * shift]


def test_mmd_is_that_of_dan():
    x, y = normal(10, BATCH, 7), normal(11, BATCH, 7) + 0.5
    np.testing.assert_allclose(mmd(x, y), jmmd_twin([x], [y]), rtol=1e-4)


def test_jmmd_is_that_of_jan():
    xs, ys = layers(12), layers(13, shift=0.5)
    np.testing.assert_allclose(jmmd(xs, ys), jmmd_twin(xs, ys), rtol=1e-4)


def test_mmd_gradient_takes_the_bandwidth_as_constant():
    x, y = normal(14, BATCH, 3), normal(15, BATCH, 3) + 1
    means = mean_distances([x], [y])
    assert_gradient(lambda x: losses.mmd(x, y), lambda x: jmmd_twin([x], [y], means), x)


def test_jmmd_gradient_takes_the_bandwidth_as_constant():
    xs, ys = layers(16), layers(17, shift=0.5)
    means = mean_distances(xs, ys)
    assert_gradient(
        lambda x: losses.jmmd([x, xs[1]], ys), lambda x: jmmd_twin([x, xs[1]], ys, means), xs[0]
    )


def information_twin(logits):
    posteriors = softmax(logits)
    mean = posteriors.mean(0)
    entropies = -(posteriors * np.log(posteriors)).sum(1)
    return entropies.mean() + (mean * np.log(mean)).sum()


def confusion_twin(logits, temperature):
    """As in the release, but for the number of images."""
    posteriors = softmax(logits / temperature)
    entropies = -(posteriors * np.log(posteriors)).sum(1)
    weights = 1 + np.exp(-entropies)
    weights = len(logits) * weights / weights.sum()
    correlation = (posteriors * weights[:, None]).T @ posteriors
    correlation /= correlation.sum(1, keepdims=True)
    return (correlation.sum() - np.trace(correlation)) / logits.shape[1]


def test_negative_information_is_that_of_shot():
    logits = normal(0, BATCH, CLASSES, scale=2.0)
    np.testing.assert_allclose(losses.negative_information(logits), information_twin(logits), 1e-5)
    assert_gradient(losses.negative_information, information_twin, logits)
    # Of sure and even predictions, of one class alone, of huge logits.
    even = 1e4 * np.eye(CLASSES, dtype=np.float32)
    np.testing.assert_allclose(losses.negative_information(even), -np.log(CLASSES), rtol=1e-5)
    assert losses.negative_information(even[[0, 0, 0]]) == 0
    assert np.isfinite(jax.grad(losses.negative_information)(even)).all()


def test_class_confusion_is_that_of_mcc():
    logits = normal(0, BATCH, CLASSES, scale=2.0)
    for temperature in (1.0, 2.5):
        found = losses.class_confusion(logits, temperature)
        np.testing.assert_allclose(found, confusion_twin(logits, temperature), rtol=1e-5)
    # The weights are constants.
    entropies = losses.entropy(logits / 2.5)
    weights = np.exp(np.log1p(np.exp(-np.asarray(entropies, np.float64))))

    def twin(x):
        posteriors = softmax(x / 2.5)
        correlation = (posteriors * weights[:, None]).T @ posteriors
        return 1 - np.trace(correlation / correlation.sum(1, keepdims=True)) / CLASSES

    assert_gradient(losses.class_confusion, twin, logits)
    sure = 1e4 * np.eye(CLASSES, dtype=np.float32)
    np.testing.assert_allclose(losses.class_confusion(sure), 0, atol=1e-6)
    absent = 1e4 * np.eye(4)[[0, 0, 2]]  # two classes have no mass
    np.testing.assert_allclose(losses.class_confusion(absent), 0, atol=1e-6)
    assert np.isfinite(jax.grad(losses.class_confusion)(absent)).all()
    np.testing.assert_allclose(losses.class_confusion(np.zeros((5, 4))), 3 / 4, rtol=1e-6)


def test_discrepancies_of_equal_batches_are_zero_in_any_order():
    xs = layers(18)
    shuffled = [x[::-1] for x in xs]
    np.testing.assert_allclose(mmd(xs[0], shuffled[0]), 0, atol=1e-6)
    np.testing.assert_allclose(jmmd(xs, shuffled), 0, atol=1e-6)


def test_jmmd_sees_what_is_joint():
    """Both layers have equal margins, but their samples no longer belong together."""
    xs = layers(19)
    ys = [xs[0], xs[1][::-1]]
    np.testing.assert_allclose(mmd(xs[1], ys[1]), 0, atol=1e-6)
    assert jmmd(xs, ys) > 0.01


def test_discrepancies_are_symmetrical():
    xs, ys = layers(20), layers(21, shift=0.5)
    np.testing.assert_allclose(mmd(xs[0], ys[0]), mmd(ys[0], xs[0]), atol=1e-6)
    np.testing.assert_allclose(jmmd(xs, ys), jmmd(ys, xs), atol=1e-6)


@pytest.mark.parametrize("scale, offset", [(1e-4, 0.0), (1e4, 0.0), (1.0, 100.0)])
def test_discrepancies_do_not_depend_on_scale_or_origin(scale, offset):
    x, y = normal(22, BATCH, 7), normal(23, BATCH, 7) + 0.5
    moved = mmd(scale * x + offset, scale * y + offset)
    np.testing.assert_allclose(moved, mmd(x, y), rtol=1e-4)


def test_discrepancies_grow_with_the_shift_and_are_at_most_two():
    x = normal(24, 64, 3)
    values = [float(mmd(x, x[::-1] + shift)) for shift in (0.0, 0.5, 1.0, 3.0, 1e6)]
    assert values == sorted(values)
    assert values[-1] <= 2


def test_discrepancies_flatten_features_and_allow_unequal_batches():
    x, y = normal(25, 4, 2, 3, 5), normal(26, 6, 2, 3, 5)
    want = jmmd_twin([x.reshape(4, -1)], [y.reshape(6, -1)])
    np.testing.assert_allclose(mmd(x, y), want, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
def test_identical_samples_have_no_discrepancy_and_no_gradient(value):
    x = jnp.full((BATCH, 5), value)
    for loss in (losses.mmd, lambda x, y: losses.jmmd([x, x], [y, y])):
        result, gradient = jax.jit(jax.value_and_grad(loss))(x, x)
        np.testing.assert_allclose(result, 0, atol=1e-7)
        np.testing.assert_array_equal(gradient, np.zeros_like(x))


def test_repeated_samples_have_a_finite_gradient():
    x = jnp.asarray(normal(27, BATCH, 5)).at[1].set(0.0).at[2].set(0.0)
    gradient = jax.jit(jax.grad(losses.mmd))(x, x + 1)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[1], gradient[2], atol=1e-6)


def test_layers_that_do_not_agree_are_an_error():
    x = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match=r"\b2\b.*\b1\b"):
        losses.jmmd([x, x], [x])
    with pytest.raises(ValueError, match=r"\b0\b.*\b0\b"):
        losses.jmmd([], [])
    with pytest.raises(ValueError, match="batch"):
        losses.jmmd([x, x[:3]], [x, x])
