"""Loss terms without state: the paper's Eq. 1, 2, 6, 10, 11, MMD, JMMD; MCC's and SHOT's."""

import functools
import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from daaa_jax.errors import check_choice

# Bandwidths of the Gaussian kernels, as multiples of the mean squared distance: five, a factor 2
# apart, as in the released DAN and JAN.
_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
ADVERSARIAL = ("lsgan", "vanilla")
# A smaller mean squared distance counts as zero: all samples are equal.
_ZERO_DISTANCE = 1e-20


def adversarial_loss(logits: Array, is_real: bool, kind: str = "lsgan") -> Array:
    """Adversarial loss of a discriminator's logits, for inputs labelled real or fake (Eq. 1).

    Used for both networks: a generator minimises it on its own images with `is_real=True`.

    Args:
      logits: patch logits of the discriminator, any shape.
      is_real: the label.
      kind: `"lsgan"` (least squares to 1 or 0) or `"vanilla"` (negative log-likelihood).

    Returns:
      Scalar, mean over all patches.

    Raises:
      ValueError: if `kind` is unknown.
    """
    check_choice("pair.adversarial", kind, ADVERSARIAL)
    logits = logits.astype(jnp.float32)
    if kind == "lsgan":
        return jnp.mean(jnp.square(logits - float(is_real)))
    # -log sigmoid(z) = softplus(-z) and -log(1 - sigmoid(z)) = softplus(z), without the logarithm
    # of a probability that has rounded to 0.
    return jnp.mean(jax.nn.softplus(-logits if is_real else logits))


def cycle_loss(images: Array, reconstructed: Array) -> Array:
    """Mean absolute error between images and their reconstruction (Eq. 2).

    Args:
      images: `[B, H, W, 3]`.
      reconstructed: the images after both generators, same shape.

    Returns:
      Scalar.

    Raises:
      ValueError: if the shapes differ.
    """
    _require_same_shape("images", images, "reconstructed", reconstructed)
    return jnp.mean(absolute(images.astype(jnp.float32) - reconstructed.astype(jnp.float32)))


def cross_entropy(logits: Array, labels: Array | np.ndarray) -> Array:
    """Cross-entropy with given labels, L_CE by sample (Eq. 6).

    Args:
      logits: `[B, K]`.
      labels: classes in [0, K), integer, `[B]`.

    Returns:
      `[B]`.

    Raises:
      ValueError: if the batch sizes differ.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {labels.shape} do not fit logits {logits.shape}")
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def soft_cross_entropy(logits: Array, posterior: Array) -> Array:
    """Cross-entropy with a posterior as soft target, L_EM by sample (Eq. 10 and 11).

    For a synthetic source image the posterior is that of its real target original (Eq. 11).

    Args:
      logits: `[B, K]`.
      posterior: class probabilities `p(z | x)`, `[B, K]`.

    Returns:
      `[B]`.

    Raises:
      ValueError: if the shapes differ.
    """
    _require_same_shape("logits", logits, "posterior", posterior)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), posterior.astype(jnp.float32))


def entropy(logits: Array) -> Array:
    """Entropy of each softmax, in nats.

    Args:
      logits: `[B, K]`.

    Returns:
      `[B]`.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(jnp.exp(logs) * logs).sum(axis=-1)


def class_confusion(logits: Array, temperature: float = 2.5) -> Array:
    """How much predictions confuse classes with each other, the loss of MCC.

    Args:
      logits: of unlabelled images, `[B, K]`.
      temperature: divides the logits.

    Returns:
      Scalar in [0, 1): the mean over the classes of the share of other classes in the row of the
      class correlation matrix, in which images with confident predictions weigh more. A class
      that no image is predicted as has no share.

    References:
      Jin et al., Minimum Class Confusion for Versatile Domain Adaptation, ECCV 2020, Eq. 1 to 7.
    """
    logits = logits.astype(jnp.float32) / temperature
    weights = jax.lax.stop_gradient(1 + jnp.exp(-entropy(logits)))
    posteriors = jax.nn.softmax(logits)
    # The factor that the paper normalises the weights by cancels below.
    correlation = jnp.einsum("bj,b,bk->jk", posteriors, weights, posteriors)
    # A class without mass, whose row underflows to 0, confuses nothing.
    mass = correlation.sum(axis=1, keepdims=True)
    confusion = jnp.where(mass > 0, correlation / jnp.where(mass > 0, mass, 1), jnp.eye(len(mass)))
    return 1 - jnp.trace(confusion) / len(confusion)


def negative_information(logits: Array) -> Array:
    """Minus the mutual information of image and predicted class, the loss of SHOT-IM.

    Args:
      logits: of unlabelled images, `[B, K]`.

    Returns:
      Scalar in [-log K, 0], in nats: the mean entropy minus the entropy of the mean prediction.

    References:
      Liang et al., Do We Really Need to Access the Source Data?, ICML 2020, Eq. 3.
    """
    mean = jax.nn.softmax(logits.astype(jnp.float32)).mean(axis=0)
    return entropy(logits).mean() - jax.scipy.special.entr(mean).sum()


def mmd(x: Array, y: Array) -> Array:
    """Squared maximum mean discrepancy between two samples of features, as in DAN.

    Args:
      x: features of one domain, `[B, ...]`; all but the first axis are flattened.
      y: features of the other domain, `[B', ...]`.

    Returns:
      Scalar in [0, 2]: the biased estimate, no root taken; 0 for equal batches. See `jmmd`.

    References:
      Long et al., Learning Transferable Features with Deep Adaptation Networks, ICML 2015.
    """
    return jmmd([x], [y])


def jmmd(xs: Sequence[Array], ys: Sequence[Array]) -> Array:
    """Squared joint maximum mean discrepancy over several layers, as in JAN.

    A layer's kernel is the mean of five Gaussians `exp(-d^2 / b)`, `b` from a quarter to four times
    the mean squared distance within the two samples taken together; the joint kernel is the product
    over the layers. Both are at most 1. The mean distance carries no gradient, as in the released
    DAN and JAN. These sum the Gaussians, which scales the result; for the softmax, JAN uses a
    single one of fixed width.

    Args:
      xs: features of one domain by layer, `[B, ...]`; all but the first axis are flattened.
      ys: the same layers of the other domain, `[B', ...]`.

    Returns:
      Scalar in [0, 2]: the biased estimate, no root taken; 0 for equal batches.

    Raises:
      ValueError: if there is no layer, or their numbers or batch sizes do not agree.

    References:
      Long et al., Deep Transfer Learning with Joint Adaptation Networks, ICML 2017.
    """
    if not len(xs) == len(ys) > 0:
        raise ValueError(
            f"both domains need the same number of layers, at least 1, got {len(xs)} and {len(ys)}"
        )
    if len({len(x) for x in xs}) > 1 or len({len(y) for y in ys}) > 1:
        raise ValueError("all layers of a domain must have the same batch size")
    kernel = functools.reduce(operator.mul, (_kernel(x, y) for x, y in zip(xs, ys, strict=True)))
    size = len(xs[0])
    within = jnp.mean(kernel[:size, :size]) + jnp.mean(kernel[size:, size:])
    return within - 2 * jnp.mean(kernel[:size, size:])


def total(terms: Iterable[Array]) -> Array:
    """Sum of at least one term."""
    return sum(terms)  # type: ignore[return-value]  # typeshed: 0 without terms


def absolute(x: Array) -> Array:
    """`|x|` with gradient 0 at 0, as in PyTorch; that of `jnp.abs` is 1 there."""
    return x * jnp.sign(x)


def normalised(features: Array) -> Array:
    """Divides each row of features `[B,D]` by its L2 norm; zeros stay zeros."""
    squares = jnp.square(features).sum(axis=1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def _kernel(x: Array, y: Array) -> Array:
    """Mean of Gaussian kernels among the rows of x and y together, `[B + B', B + B']`."""
    points = jnp.concatenate(
        [features.reshape(len(features), -1).astype(jnp.float32) for features in (x, y)]
    )
    # Distances do not change with the origin. With one of the points as origin, the products below
    # cancel only to rounding of the spread, and to exactly 0 if all points are equal.
    points -= jax.lax.stop_gradient(points[:1])
    # Full precision: the default of an accelerator (TF32, bfloat16) is lost in the cancellation.
    products = jnp.matmul(points, points.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(points), axis=-1)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    count = len(points)
    mean = jax.lax.stop_gradient(jnp.sum(distances) / (count * (count - 1)))
    mean = jnp.where(mean > _ZERO_DISTANCE, mean, 1.0)
    return total(jnp.exp(-distances / (factor * mean)) for factor in _BANDWIDTHS) / len(_BANDWIDTHS)


def _require_same_shape(first_name: str, first: Array, second_name: str, second: Array) -> None:
    """Raises ValueError where broadcasting would hide a mistake."""
    if first.shape != second.shape:
        raise ValueError(f"{first_name} {first.shape} and {second_name} {second.shape} differ")
