"""The EM of section 3.3: posterior, filter (B), sync (A); and the paired posterior (ours)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

POSTERIORS = ("target", "paired")
SECOND_VIEWS = ("source", "posterior")
NORMALIZERS = ("batch", "kept")
CONFIDENT = 0.95  # least value of the largest posterior of an image that `ViewCounts` counts


def posterior(logits: Array | np.ndarray) -> Array:
    """Class posterior `p_post(z | x)` of the frozen posterior network M^post (Eq. 8).

    Args:
      logits: of M^post, `[B, K]`.

    Returns:
      `[B, K]`, float32, without gradient: within a round the targets are constants.
    """
    return jax.lax.stop_gradient(jax.nn.softmax(logits.astype(jnp.float32), axis=-1))


def paired_posterior(
    logits: Array | np.ndarray,
    other_logits: Array | np.ndarray,
    weight: Array | float = 1.0,
    log_prior: np.ndarray | float = 0.0,
) -> Array:
    """Posterior of both images of a pair, a product of experts. Ours, not the paper's.

    `p(z | x, x') ~ p(z | x) (p(z | x') / prior(z))^weight`, normalised, for a target image x and
    its translation x' = G_TS(x). The paper reads x alone, and uses that posterior for both images.

    Args:
      logits: of M^post on x, or log probabilities, `[B, K]`.
      other_logits: of the network that reads x', `[B, K]`.
      weight: of the second image, in [0, 1]; 0 gives `posterior(logits)` bit for bit, 1 is
        symmetric in both.
      log_prior: log of the class frequencies that both share, finite, `[K]`; 0 for equal ones.

    Returns:
      `[B, K]`, float32, without gradient; finite for any finite logits.
    """
    own, other = (
        scores - scores.max(axis=-1, keepdims=True)
        for scores in (logits.astype(jnp.float32), other_logits.astype(jnp.float32))
    )
    return posterior(own + weight * (other - log_prior))


@dataclasses.dataclass(frozen=True)
class ViewCounts:
    """Counts of agreement that set the weight of a second view, without labels; not the paper's.

    Only images x^T on which M^post is confident are counted, see `CONFIDENT`.

    Attributes:
      confident: number of these images.
      contradictions: those where the source network predicts another class on G_TS(x^T).
      own: those where it predicts another class on x^T itself.
      others: those outside M^post's most frequent class.
    """

    confident: int
    contradictions: int
    own: int
    others: int

    @property
    def errors(self) -> dict[str, float]:
        """Smoothed error rates against M^post of the source network on translations (`e`) and on
        the images themselves (`e0`), and of a constant prediction (`e1`)."""
        counts = {"e": self.contradictions, "e0": self.own, "e1": self.others}
        return {name: (count + 1) / (self.confident + 1) for name, count in counts.items()}

    def weight(self, tolerance: float) -> float:
        """gamma of `paired_posterior`: `1 - e / min(tolerance, e0, e1)`, in [0, 1], a float32.

        A second view has weight only if it contradicts M^post less than the untranslated image
        does, and less than a constant prediction does.

        Args:
          tolerance: share of contradictions from which a second view is not used, positive.
        """
        e, e0, e1 = self.errors.values()
        return float(np.float32(np.clip(1 - e / min(tolerance, e0, e1), 0, 1)))


def count_views(posteriors: np.ndarray, own: np.ndarray, translated: np.ndarray) -> ViewCounts:
    """Counts for the weight of a second view.

    Args:
      posteriors: of M^post on x^T, `[N, K]`.
      own: of the source network on x^T, `[N, K]`.
      translated: of the source network on G_TS(x^T), `[N, K]`.
    """
    classes, confident = posteriors.argmax(axis=-1), posteriors.max(axis=-1) >= CONFIDENT
    frequencies = np.bincount(classes[confident], minlength=posteriors.shape[-1])
    return ViewCounts(
        confident=int(confident.sum()),
        contradictions=int((confident & (translated.argmax(axis=-1) != classes)).sum()),
        own=int((confident & (own.argmax(axis=-1) != classes)).sum()),
        others=int(confident.sum() - frequencies.max()),
    )


def keep_mask(posterior: Array, threshold: float) -> Array:
    """Which samples are confident enough to learn from (B).

    A mask, not a filter: shapes stay static under `jit`.

    Args:
      posterior: class probabilities, `[B, K]`.
      threshold: `p_t`; 0 keeps every sample.

    Returns:
      `[B]`, float32: 1 where `max_z p(z | x) >= p_t`, else 0.
    """
    return (jnp.max(posterior.astype(jnp.float32), axis=-1) >= threshold).astype(jnp.float32)


def refresh(
    posterior_variables: Any,
    target_variables: Any,
    step: Array | int,
    every: int,
    decay: float = 0.0,
) -> Any:
    """The variables of M^post after an update: `theta_post(t) = theta(floor(t / N) N)` (A).

    With a `decay` a sync averages instead of copying (ours): the moving average of Mean Teacher
    (Tarvainen and Valpola, NeurIPS 2017), updated once per sync.

    Args:
      posterior_variables: parameters and batch statistics of M^post before.
      target_variables: those of the target network after `step` updates, same structure.
      step: number `t` of updates made, from 1.
      every: number `N` of updates between syncs; 1 is EM without the asynchronous update.
      decay: weight of `posterior_variables` in a sync, in [0, 1]. In the n-th sync it is at most
        `1 - 1/n`, so that the initial network never counts; 1 gives the mean of all synced
        networks. Batch statistics are averaged too, which approximates those of the average.

    Returns:
      Where `every` divides `step`, the average of both, or `target_variables` without a `decay`;
      else `posterior_variables`.

    Raises:
      ValueError: if `every` is less than 1.
    """
    if every < 1:
        raise ValueError(f"em.refresh_every must be at least 1, not {every}")

    def synced() -> Any:
        if not decay:
            return target_variables
        share = jnp.maximum(1 - decay, every / jnp.asarray(step))
        return optax.incremental_update(target_variables, posterior_variables, share)

    return jax.lax.cond(jnp.asarray(step) % every == 0, synced, lambda: posterior_variables)
