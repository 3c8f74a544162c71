"""The second view of a target image x^T, its translation G_TS(x^T): its weight and its soft labels.

Ours, not the paper's, which reads x^T alone. See `em.paired_posterior` and `em.ViewCounts`.
"""

import dataclasses
import functools
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from daaa_jax import em, evaluation
from daaa_jax.data.images import chosen
from daaa_jax.data.types import ImageArray, LabelledImages
from daaa_jax.evaluation import Evaluation, Evaluator
from daaa_jax.models import Variables

_COUNTED = 2048  # target training images that are counted, at most
POOR = 0.5  # gamma below which translations are called poor
_FEW = 50  # with fewer confident images the counts are not reliable
_WITHOUT = (
    "leave synthetic images out of the batches with --config.adapt.mix.t_f=0 "
    "--config.adapt.mix.s_f=0. With --config.adapt.beta=0 --config.em.posterior=target as well, no "
    "CycleGAN is trained"
)
POOR_TRANSLATIONS = (
    "the translations of target images are poor (gamma below 0.5): look at them in the report and "
    f"improve them, for instance with more pair.epochs; or {_WITHOUT}"
)
LITTLE_TO_ADD = (
    "the translations of target images have little weight (gamma below 0.5): the source network "
    "agrees with confident soft labels hardly more often on them than on the images themselves, or "
    "than a constant prediction would, so that em.posterior=paired and predict --paired change "
    f"little. To see whether synthetic images help in training, {_WITHOUT}"
)
FEW_CONFIDENT = (
    "the translations of target images have little weight (gamma below 0.5) whatever their "
    "quality, as few target images are confident yet: make more updates before the first sync "
    f"(em.refresh_every, adapt.round_steps) for a reliable measurement; or {_WITHOUT}"
)


def log_prior(labels: np.ndarray, classes: int) -> np.ndarray:
    """Log of the source classes' frequencies, float32 `[K]`, finite, for `em.class_prior`.

    Args:
      labels: of the source training images.
      classes: K; a class without images counts as having one.
    """
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    return np.log(counts / counts.sum()).astype(np.float32)


def measured_at(config: ConfigDict) -> int | None:
    """The update after which the second view's weight is measured, or None if it never is.

    It ends the first round after which M^post differs from the network that training started from.
    Before, the two are the same network and always agree.
    """
    rounds = config.adapt.round_steps
    first = -(-config.em.refresh_every // rounds) * rounds
    return first if first <= config.adapt.rounds * rounds else None


def measure_once(
    view: "SecondView", step: int, posterior: Variables, loop_state: MutableMapping[str, Any]
) -> float | None:
    """Measures and prints the weight if it is due, and warns of poor translations.

    Args:
      view: reads the translations.
      step: updates made.
      posterior: variables of M^post.
      loop_state: where the measurement is stored under `em`.

    Returns:
      gamma, or None if it is not due.
    """
    due = measured_at(view.config)
    if "em" not in loop_state:
        loop_state["em"] = {"gamma": 0.0}
        if due is None:
            print(
                "second view: not measured, as the posterior network never changes; gamma 0",
                flush=True,
            )
    if step != due:
        return None
    found = loop_state["em"] = view.measure(posterior)
    print(describe(found), flush=True)
    text = warning(found, view.config.em.tolerance)
    if text and not view.config.smoke:
        print(f"warning: {text}", flush=True)
    return found["gamma"]


def describe(found: Mapping[str, Any]) -> str:
    """One line on a measured weight, see `SecondView.measure`."""
    return (
        f"second view: gamma {found['gamma']:.3f}; of {found['confident']} confident target images "
        f"the source network contradicts {found['contradictions']} on their translations "
        f"(e {found['e']:.3f}) and {found['own']} on the images themselves (e0 {found['e0']:.3f}); "
        f"{found['others']} are outside the most frequent class (e1 {found['e1']:.3f})"
    )


def warning(found: Mapping[str, Any], tolerance: float) -> str:
    """Why a measured weight is low, and what to do; empty if it is not low."""
    if found["gamma"] >= POOR:
        return ""
    if found["confident"] < _FEW:
        return FEW_CONFIDENT
    alone = 1 - found["e"] / tolerance  # the weight without e0 and e1
    return LITTLE_TO_ADD if alone >= POOR else POOR_TRANSLATIONS


@dataclasses.dataclass(frozen=True)
class SecondView:
    """Evaluates the translations of the target training images with the source network or M^post.

    Attributes:
      source: the source network's variables.
      translations: G_TS(x^T) of all target training images, in their order.
      originals: the target training images; their labels are read by `audit` only.
      audited: rows of those that `audit` evaluates.
      evaluate: gives posteriors of a network.
      config: the whole config; `em`, `adapt.rounds` and `adapt.round_steps` are read.
      log_prior: see `em.paired_posterior`.
    """

    source: Variables
    translations: ImageArray
    originals: LabelledImages
    audited: np.ndarray
    evaluate: Evaluator
    config: ConfigDict
    log_prior: np.ndarray | float = 0.0

    def measure(self, posterior: Variables) -> dict[str, Any]:
        """Measures the weight gamma, without labels.

        Args:
          posterior: variables of M^post.

        Returns:
          `gamma`, the counts of `em.ViewCounts` and its `errors`, by name.
        """
        rows = evaluation.spread(len(self.originals.labels), _COUNTED)
        unknown = np.full(len(rows), -1, np.int32)

        def posteriors_of(network: Variables, images: ImageArray) -> np.ndarray:
            some = LabelledImages(chosen(images, rows), unknown)
            return np.exp(self.evaluate(network, some).log_posteriors)

        counts = em.count_views(
            posteriors_of(posterior, self.originals.images),
            own=posteriors_of(self.source, self.originals.images),
            translated=posteriors_of(self.source, self.translations),
        )
        weight = counts.weight(self.config.em.tolerance)
        return {"gamma": weight, **dataclasses.asdict(counts), **counts.errors}

    def audit(
        self, posterior: Variables, own: Evaluation, weight: float
    ) -> Mapping[str, Evaluation]:
        """Evaluates the soft labels: those of each view, and those used in training.

        Args:
          posterior: variables of M^post.
          own: evaluation of M^post on the audited images.
          weight: gamma.

        Returns:
          `used`, the soft labels of training; `own`, M^post on x^T; `second_view`, the network
          `em.second_view` on G_TS(x^T).
        """
        source_reads = self.config.em.second_view == "source"
        second = self._read_by_source if source_reads else self._read(posterior)
        used = own
        if self.config.em.posterior == "paired" and weight > 0:
            paired = em.paired_posterior(
                own.log_posteriors, second.log_posteriors, weight, self.log_prior
            )
            labels, threshold = self.originals.labels[self.audited], self.config.em.threshold
            used = evaluation.of_posteriors(paired, labels, threshold)
        return {"used": used, "own": own, "second_view": second}

    @functools.cached_property
    def _read_by_source(self) -> Evaluation:
        return self._read(self.source)

    def _read(self, network: Variables) -> Evaluation:
        translated = LabelledImages(self.translations, self.originals.labels)
        return self.evaluate(network, translated.subset(self.audited))


def paired_accuracies(
    evaluate: Evaluator,
    test: LabelledImages,
    translations: ImageArray,
    networks: Mapping[str, Variables],
    gamma: float,
    threshold: float,
) -> dict[str, Any]:
    """Accuracies of inference on both images of a pair, for `result.json`.

    `evaluation.paired_posteriors` computes the same posteriors in one program.

    Args:
      evaluate: measures a network on some images.
      test: the target's test images.
      translations: the test images in the source's style, uint8 `[N,H,W,3]`.
      networks: `source`, `last` and `selected`.
      gamma: weight of the second image.
      threshold: p_t of section 3.3, B.

    Returns:
      `paired`, with `paired_last` and `paired_selected`; and `source_translated`, of the source
      network on the translations alone.
    """
    translated = LabelledImages(translations, test.labels)

    def paired(network: Variables) -> float:
        own, other = (np.exp(evaluate(network, data).log_posteriors) for data in (test, translated))
        posteriors = (own + gamma * other) / (1 + gamma)
        return evaluation.of_posteriors(posteriors, test.labels, threshold).accuracy

    return {
        "paired": {f"paired_{name}": paired(networks[name]) for name in ("last", "selected")},
        "source_translated": evaluate(networks["source"], translated).accuracy,
    }
