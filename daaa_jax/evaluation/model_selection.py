"""Model selection without target labels: scores of a network by what it says of unlabelled images.

Each validator is a function of a network's `Outputs` on the target domain, and of those on labelled
source images that it was not trained on where it asks for them. The higher, the better.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from daaa_jax.errors import UserError
from daaa_jax.evaluation import Outputs

_TEMPERATURE = 0.05  # of soft neighbourhood density, as its paper sets it
_ROWS_AT_ONCE = 1024
_SUREST = 50.0  # logit of a domain; beyond it no ratio means anything


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Labelled source images that the network was not trained on, and those that it was.

    Attributes:
      outputs: on the held-out images.
      labels: their classes, int `[N]`.
      trained_on: features of source training images, float `[M,D]`.
    """

    outputs: Outputs
    labels: np.ndarray
    trained_on: np.ndarray


Validator = Callable[[Outputs, HeldOut | None], float]


def entropy(target: Outputs, held_out: HeldOut | None = None) -> float:
    """Minus the mean entropy of the posteriors, in nats: confident networks score high.

    A network that says the same of every image scores high, too.
    """
    return -float(_entropies(target.posteriors).mean())


def information(target: Outputs, held_out: HeldOut | None = None) -> float:
    """Entropy of the mean posterior less the mean entropy (information maximisation), in nats.

    The mutual information of image and predicted class (Bridle et al., NIPS 1991).
    """
    marginal = target.posteriors.mean(axis=0, keepdims=True)
    return float(_entropies(marginal)[0] - _entropies(target.posteriors).mean())


def neighbourhood_density(target: Outputs, held_out: HeldOut | None = None) -> float:
    """Soft neighbourhood density (Saito et al., ICCV 2021), in nats.

    The mean entropy of the similarity of each image to all others, a softmax over cosines of
    posteriors at a temperature of 0.05: high where images of a class lie close together, all alike.
    """
    directions = target.posteriors / np.linalg.norm(target.posteriors, axis=1, keepdims=True)
    count, total = len(directions), 0.0
    if count < 2:  # no neighbour
        return 0.0
    for first in range(0, count, _ROWS_AT_ONCE):
        rows = directions[first : first + _ROWS_AT_ONCE]
        similarity = rows @ directions.T / _TEMPERATURE
        similarity[np.arange(len(rows)), first + np.arange(len(rows))] = -np.inf  # but itself
        similarity -= similarity.max(axis=1, keepdims=True)
        weights = np.exp(similarity)
        total += _entropies(weights / weights.sum(axis=1, keepdims=True)).sum()
    return float(total / count)


def deep_embedded(target: Outputs, held_out: HeldOut | None) -> float:
    """Minus the risk on the target domain by deep embedded validation (You et al., ICML 2019).

    The cross-entropy on held-out source images, weighted by how much more likely their features are
    in the target domain than in the source domain, with a control variate against the variance of
    the weights. A logistic regression on standardised features tells the domains apart.

    Raises:
      UserError: without held-out source images.
    """
    if held_out is None:
        raise UserError(
            "deep embedded validation needs labelled source images that are not trained on: "
            "set data.source_holdout, for instance to 0.1"
        )
    weights = density_ratio(held_out.trained_on, target.features, held_out.outputs.features)
    chosen = held_out.outputs.posteriors[np.arange(len(held_out.labels)), held_out.labels]
    losses = -np.log(np.maximum(chosen, np.finfo(np.float32).tiny))
    return -control_variate_mean(weights * losses, weights)


def density_ratio(source: np.ndarray, target: np.ndarray, at: np.ndarray) -> np.ndarray:
    """p_T(f) / p_S(f) by a classifier of the two domains.

    Args:
      source: features of the source domain, `[M,D]`.
      target: features of the target domain, `[N,D]`.
      at: where the ratio is asked for, `[B,D]`.

    Returns:
      `[B]`, positive.
    """
    # Imported here, as it takes seconds that most runs spare.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    domains = np.repeat([0, 1], [len(source), len(target)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(np.concatenate([source, target]), domains)
    odds = np.exp(np.clip(classifier.decision_function(at), -_SUREST, _SUREST))
    return odds * len(source) / len(target)


def control_variate_mean(weighted: np.ndarray, weights: np.ndarray) -> float:
    """The mean of `weighted`, by the weights, whose own mean is known to be 1, of lower variance.

    Args:
      weighted: weight times loss of each image, `[N]`.
      weights: `[N]`.
    """
    if not weights.var():
        return float(weighted.mean())
    covariance = np.mean((weighted - weighted.mean()) * (weights - weights.mean()))
    return float(weighted.mean() - covariance / weights.var() * (weights.mean() - 1))


def _entropies(posteriors: np.ndarray) -> np.ndarray:
    """In nats, of each row; 0 log 0 is 0."""
    logs = np.log(posteriors, where=posteriors > 0, out=np.zeros_like(posteriors))
    return -(posteriors * logs).sum(axis=1)


# By the names that a report gives them.
VALIDATORS: dict[str, Validator] = {
    "entropy": entropy,
    "information": information,
    "neighbourhood_density": neighbourhood_density,
    "deep_embedded": deep_embedded,
}
NEED_HELD_OUT = ("deep_embedded",)
