"""Model selection without target labels, by validators that score a network on unlabelled images.

Each validator is a function of the network's `Outputs` on the target domain and, for some, on
held-out labelled source images. Higher scores are better.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.special import entr, softmax

from daaa_jax.evaluation import Outputs

_TEMPERATURE = 0.05  # of soft neighbourhood density, as in its paper
_ROWS_AT_ONCE = 1024
_LARGEST_LOGIT = 50.0  # of a domain; beyond it a density ratio is meaningless


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Outputs on held-out labelled source images, and features of source training images.

    Attributes:
      outputs: on the held-out images.
      labels: classes of the held-out images, int `[N]`.
      trained_on: features of source training images, float `[M,D]`.
    """

    outputs: Outputs
    labels: np.ndarray
    trained_on: np.ndarray


Validator = Callable[[Outputs, HeldOut | None], float]


def entropy(target: Outputs, held_out: HeldOut | None = None) -> float:
    """Minus the mean entropy of the posteriors, in nats: confident networks score high.

    So does a network that confidently predicts the same class for every image.
    """
    return -float(_entropies(target.posteriors).mean())


def information(target: Outputs, held_out: HeldOut | None = None) -> float:
    """Entropy of the mean posterior minus the mean entropy (information maximisation), in nats.

    The mutual information of image and predicted class (Bridle et al., NIPS 1991).
    """
    marginal = target.posteriors.mean(axis=0, keepdims=True)
    return float(_entropies(marginal)[0] - _entropies(target.posteriors).mean())


def neighbourhood_density(target: Outputs, held_out: HeldOut | None = None) -> float:
    """Soft neighbourhood density (Saito et al., ICCV 2021), in nats.

    The mean entropy of each image's similarity to all others, a softmax over cosines of posteriors
    at a temperature of 0.05. It is high where the images of a class form a dense cluster.
    """
    directions = target.posteriors / np.linalg.norm(target.posteriors, axis=1, keepdims=True)
    count, total = len(directions), 0.0
    if count < 2:  # no neighbour
        return 0.0
    for first in range(0, count, _ROWS_AT_ONCE):
        rows = directions[first : first + _ROWS_AT_ONCE]
        similarity = rows @ directions.T / _TEMPERATURE
        similarity[np.arange(len(rows)), first + np.arange(len(rows))] = -np.inf  # not itself
        total += _entropies(softmax(similarity, axis=1)).sum()
    return float(total / count)


def deep_embedded(target: Outputs, held_out: HeldOut | None) -> float:
    """Minus the target risk estimated by deep embedded validation (You et al., ICML 2019).

    The risk is the cross-entropy on held-out source images, weighted by `density_ratio` of their
    features, with a control variate that reduces the variance.
    """
    assert held_out is not None  # see `NEED_HELD_OUT`
    weights = density_ratio(held_out.trained_on, target.features, held_out.outputs.features)
    chosen = held_out.outputs.posteriors[np.arange(len(held_out.labels)), held_out.labels]
    losses = -np.log(np.maximum(chosen, np.finfo(np.float32).tiny))
    return -control_variate_mean(weights * losses, weights)


def density_ratio(source: np.ndarray, target: np.ndarray, at: np.ndarray) -> np.ndarray:
    """p_T(f) / p_S(f), from a logistic regression on standardised features of both domains.

    Args:
      source: features of the source domain, `[M,D]`.
      target: features of the target domain, `[N,D]`.
      at: features at which the ratio is evaluated, `[B,D]`.

    Returns:
      `[B]`, positive.
    """
    # Imported here, as it takes seconds and most runs do not need it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    domains = np.repeat([0, 1], [len(source), len(target)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(np.concatenate([source, target]), domains)
    odds = np.exp(np.clip(classifier.decision_function(at), -_LARGEST_LOGIT, _LARGEST_LOGIT))
    return odds * len(source) / len(target)


def control_variate_mean(weighted: np.ndarray, weights: np.ndarray) -> float:
    """Mean of `weighted`, with the weights as a control variate that reduces its variance.

    Args:
      weighted: weight times loss of each image, `[N]`.
      weights: `[N]`; their expectation is 1.
    """
    if not weights.var():
        return float(weighted.mean())
    covariance = np.mean((weighted - weighted.mean()) * (weights - weights.mean()))
    return float(weighted.mean() - covariance / weights.var() * (weights.mean() - 1))


def _entropies(posteriors: np.ndarray) -> np.ndarray:
    """Entropy of each row, in nats."""
    return entr(posteriors).sum(axis=1)


# By the names in reports and in `evaluate.validator`.
VALIDATORS: dict[str, Validator] = {
    "entropy": entropy,
    "information": information,
    "neighbourhood_density": neighbourhood_density,
    "deep_embedded": deep_embedded,
}
REWARD_CONFIDENCE = ("entropy", "information")
NEED_HELD_OUT = ("deep_embedded",)
