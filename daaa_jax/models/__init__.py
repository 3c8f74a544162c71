"""Networks by name: what the stages ask for when a config says which classifier to build."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from daaa_jax.models.digits import DigitNetwork
from daaa_jax.models.discriminator import PatchDiscriminator
from daaa_jax.models.generator import Generator

__all__ = [
    "DigitNetwork",
    "Generator",
    "PatchDiscriminator",
    "Variables",
    "create_classifier",
    "initial_variables",
]

Variables = Mapping[str, Mapping]  # of a classifier: `params` and `batch_stats`


def create_classifier(settings, num_classes: int, attention: str) -> nn.Module:
    """Builds the classifier that a config names.

    Args:
      settings: `config.model`, with `name` and the sizes of that network (`widths` for `digits`).
      num_classes: number of classes K.
      attention: how features become attention maps, see `attention.attention_map`.

    Returns:
      A module called as `module.apply(variables, images, train)` that gives logits `[B, K]`.

    Raises:
      ValueError: if no network has that name.
    """
    if settings.name == "digits":
        widths = tuple(settings.get("widths", DigitNetwork.widths))
        return DigitNetwork(num_classes=num_classes, widths=widths, attention=attention)
    raise ValueError(f"unknown classifier {settings.name!r}: known is 'digits'")


def initial_variables(key: jax.Array, model: nn.Module, images: jax.Array) -> Variables:
    """Fresh parameters and batch statistics of a classifier.

    Args:
      key: a PRNG key.
      model: the classifier.
      images: float32 `[1, H, W, 3]`, for the shape alone.
    """
    variables = model.init(key, images, train=False)
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}
