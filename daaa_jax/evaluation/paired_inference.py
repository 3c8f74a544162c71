"""Accuracy of paired inference on the target's test images, each with its translation.

Ours, not the paper's; `evaluation.paired_outputs` computes the same in one program.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from daaa_jax import evaluation
from daaa_jax.data.types import ImageArray, LabelledImages
from daaa_jax.evaluation import Evaluator
from daaa_jax.models import Variables


def accuracies(
    evaluate: Evaluator,
    test: LabelledImages,
    translations: ImageArray,
    networks: Mapping[str, Variables],
    gamma: float,
    threshold: float,
) -> dict[str, Any]:
    """Accuracies of inference on both images of a pair, for `result.json`.

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
