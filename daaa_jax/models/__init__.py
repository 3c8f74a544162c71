"""Builds the networks that a config names, with initial or pretrained variables."""

import inspect
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax

from daaa_jax import losses
from daaa_jax.errors import UserError, check_choice
from daaa_jax.models import efficientnet, pretrained, published_weights, resnet, weight_file
from daaa_jax.models.digits import DigitNetwork
from daaa_jax.models.discriminator import PatchDiscriminator
from daaa_jax.models.efficientnet import EfficientNetLite0
from daaa_jax.models.generator import Generator

Variables = Mapping[str, Mapping]  # of a classifier: `params` and `batch_stats`


DTYPES = ("auto", "float32", "bfloat16")  # of `config.model.dtype`
# Each classifier with the table of its weight names in published files. A new classifier needs a
# file and a line here.
CLASSIFIERS: dict[str, tuple[Callable[..., nn.Module], Sequence[tuple[str, str]]]] = {
    "digits": (DigitNetwork, ()),
    "efficientnet_lite0": (EfficientNetLite0, efficientnet.WEIGHT_NAMES),
    **{name: (network, resnet.WEIGHT_NAMES) for name, network in resnet.NETWORKS.items()},
}


def create_classifier(settings, num_classes: int, attention: str) -> nn.Module:
    """Builds the classifier that a config names.

    Args:
      settings: `config.model`: `name`, and values for the network's attributes.
      num_classes: number of classes K.
      attention: how features become attention maps, see `attention.attention_map`.

    Returns:
      A module; `module.apply(variables, images, train)` returns logits `[B, K]`.

    Raises:
      UserError: if no network has that name.
    """
    check_choice("model.name", settings.name, CLASSIFIERS, UserError)
    network, _ = CLASSIFIERS[settings.name]
    known = inspect.signature(network).parameters.keys() - {"parent", "name"}
    chosen = {name: value for name, value in settings.items() if name in known}
    if "dtype" in chosen:
        chosen["dtype"] = computation_type(settings)
    return network(num_classes=num_classes, attention=attention, **chosen)


def create_gan(settings) -> tuple[nn.Module, nn.Module]:
    """Builds the generator and the discriminator of `config.pair`, each used for both domains."""
    start = settings.get("identity_start", False)
    generator = Generator(settings.filters, settings.downsamplings, settings.blocks, start)
    size = settings.discriminator_filters, settings.discriminator_layers
    return generator, PatchDiscriminator(*size, settings.batch_deviation)


def adversarial_loss(settings, params: Mapping, images: jax.Array, is_real: bool) -> jax.Array:
    """The adversarial loss of a discriminator on some images, see `losses.adversarial_loss`.

    Args:
      settings: `config.pair`.
      params: of the discriminator.
      images: float32 `[B,H,W,3]` in [-1, 1].
      is_real: the label.
    """
    _, discriminator = create_gan(settings)
    logits = discriminator.apply({"params": params}, images)
    return losses.adversarial_loss(logits, is_real, settings.adversarial)


def computation_type(settings) -> str:
    """The type that `config.model.dtype` selects on the current devices."""
    if settings.dtype != "auto":
        return settings.dtype
    # On a CPU, bfloat16 is slower than float32.
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def pretrained_variables(settings, variables: Variables) -> Variables:
    """Replaces `variables` by the pretrained weights that `config.model` names, if any.

    The classifier layer keeps its initial weights, as its classes are those of the task. Reads
    nothing while JAX traces for shapes only.

    Raises:
      UserError: if the file is missing, damaged or does not fit; lists everything that does not.
    """
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(variables))
    if not settings.weights or traced:
        return variables
    _, names = CLASSIFIERS[settings.name]
    weights, setting = settings.weights, f"model.weights={settings.weights}"
    if not names:
        raise UserError(f"{setting}: {settings.name} supports none, leave it empty")
    if weights in published_weights.PUBLISHED and weights != settings.name:
        known = settings.name if settings.name in published_weights.PUBLISHED else "a file"
        raise UserError(
            f"{setting} are weights of {weights}, not {settings.name}: set model.weights to "
            f"{known}, or leave it empty for random ones"
        )
    path = published_weights.find(weights)
    return pretrained.fit(weight_file.read(path), names, variables, path)


def features(updates: Mapping) -> jax.Array:
    """Input of the last layer, `[B, D]` in float32, from a pass with the collection `features`."""
    return updates["features"]["seen"]


def initial_variables(key: jax.Array, model: nn.Module, images: jax.Array) -> Variables:
    """Initialises the parameters and batch statistics of a classifier.

    Args:
      key: a PRNG key.
      model: the classifier.
      images: float32 `[1, H, W, 3]`; only the shape is used.
    """
    return model.init(key, images, train=False, mutable=("params", "batch_stats"))


def starting_variables(settings, key: jax.Array, model: nn.Module, images: jax.Array) -> Variables:
    """Variables at the start of training: initial, or pretrained except for the classifier layer.

    Used for the source network, and for networks trained from scratch.

    Args:
      settings: `config.model`.
      key: a PRNG key.
      model: the classifier.
      images: float32 `[1, H, W, 3]`; only the shape is used.

    Raises:
      UserError: see `pretrained_variables`.
    """
    return pretrained_variables(settings, initial_variables(key, model, images))
