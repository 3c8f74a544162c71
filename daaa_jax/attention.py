"""Attention maps and their alignment: Eq. 4 and 5, and collecting the maps that a network sows."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax import Array

from daaa_jax import losses
from daaa_jax.errors import check_choice

_AGGREGATES = {
    "sum_squares": lambda features: jnp.sum(jnp.square(features), axis=-1),
    "sum_abs": lambda features: jnp.sum(losses.absolute(features), axis=-1),
    "max_abs": lambda features: jnp.max(losses.absolute(features), axis=-1),
    "features": lambda features: features,
}
KINDS = tuple(_AGGREGATES)  # of attention maps
MEASURES = ("l2", "l1", "mmd", "jmmd")  # of the distance between maps

# Below this, an attention map counts as all zero: dividing by it would only amplify rounding.
_ZERO_MAP = 1e-20
# Smooths the norm of Eq. 5 where two maps agree. Maps of norm 1 differ by about 1e-7 from rounding
# alone; the smoothing brings the gradient of that noise down to 0.1 % of a real one. In bfloat16
# they differ by up to 5e-4, where it does not: in a small ResNet with frozen batch statistics,
# equal networks have a quarter of the gradient of ones whose parameters differ by 5 %. With batch
# statistics, the default, the two networks' maps differ from the start.
_SMOOTHING = 1e-4


def attention_map(features: Array, kind: str = "sum_squares") -> Array:
    """Aggregates the channels of a feature map into one attention map (Eq. 4).

    Args:
      features: output of a layer, `[B, h, w, c]`.
      kind: `"sum_squares"` (the paper), `"sum_abs"`, `"max_abs"`, or `"features"`, which keeps
        every channel (Table A1).

    Returns:
      `[B, h*w]`, for `"features"` `[B, h*w*c]`, float32.

    Raises:
      ValueError: if `features` is not of rank 4 or `kind` is unknown.
    """
    if features.ndim != 4:
        raise ValueError(f"features must be [B, h, w, c], got shape {features.shape}")
    check_choice("adapt.attention", kind, KINDS)
    features = features.astype(jnp.float32)
    return _AGGREGATES[kind](features).reshape(features.shape[0], -1)


def sow_map(module: nn.Module, name: str, features: Array, kind: str) -> None:
    """Sows the attention map of `features` into the `intermediates` of `module` under `name`.

    Args:
      module: the module whose `__call__` is running.
      name: name of the map. Flax refuses the name of a submodule or parameter of `module`.
      features: output of the layer, `[B, h, w, c]`.
      kind: see `attention_map`.
    """
    module.sow("intermediates", name, attention_map(features, kind))


def collect(intermediates: Mapping[str, Any], pattern: str = ".*") -> dict[str, Array]:
    """Gathers the sown maps by name.

    Args:
      intermediates: the `intermediates` collection of one forward pass.
      pattern: regular expression that the whole name must match. Names of nested modules are
        joined by `/`.

    Returns:
      Name to map, `[B, M]` each.

    Raises:
      ValueError: if no name matches, or a map was sown more than once.
    """
    chosen = _matching(traverse_util.flatten_dict(intermediates, sep="/"), pattern)
    for name, sown in chosen.items():
        if len(sown) != 1:
            raise ValueError(f"{name!r} was sown {len(sown)} times in one forward pass, not once")
    return {name: sown[0] for name, sown in chosen.items()}


def attention_distance(source_maps: Array, target_maps: Array, measure: str = "l2") -> Array:
    """Distance between normalised attention maps of paired images (Eq. 5).

    Each map is divided by its own L2 norm. The norm of the difference is smoothed, so that it has
    no kink where the two networks agree, as they do when the target starts from the source.

    Args:
      source_maps: attention maps of the source network, `[B, M]`.
      target_maps: attention maps of the target network for the paired images, `[B, M]`.
      measure: `"l2"` (the paper) or `"l1"`.

    Returns:
      `[B]`, unitless, in [0, 2] for `"l2"` and [0, 2 sqrt(M)] for `"l1"`, up to the smoothing of
      1e-4 and 1e-4 sqrt(M). The gradient vanishes where the two maps agree up to the rounding of
      float32.

    Raises:
      ValueError: if the shapes differ or `measure` is unknown.
    """
    if source_maps.shape != target_maps.shape or source_maps.ndim != 2:
        raise ValueError(
            "attention maps of a pair must have the same shape [B, M], "
            f"got {source_maps.shape} and {target_maps.shape}"
        )
    check_choice("adapt.measure", measure, MEASURES[:2])
    squares = jnp.square(_normalise(source_maps) - _normalise(target_maps))
    if measure == "l2":
        return jnp.sqrt(jnp.sum(squares, axis=-1) + _SMOOTHING**2)
    # One entry's share of the smoothing: both measures weigh rounding noise alike.
    return jnp.sum(jnp.sqrt(squares + _SMOOTHING**2 / squares.shape[-1]), axis=-1)


def alignment_loss(
    source_maps: Mapping[str, Array],
    target_maps: Mapping[str, Array],
    measure: str = "l2",
    jmmd_layers: str = ".*",
) -> Array:
    """The attention alignment loss L_AT (Eq. 5), and its variants of Table 4.

    Args:
      source_maps: layer to attention maps of the source network, `[B, M]` each.
      target_maps: the same layers of the target network for the paired images.
      measure: `"l2"` (the paper), `"l1"`, `"mmd"` or `"jmmd"`. The last two compare the
        distributions of the normalised maps over the batch and ignore which image pairs which.
      jmmd_layers: regular expression that the whole name of a layer must match to enter the joint
        kernel of `"jmmd"`, which degenerates over many layers: see `joint_layers`. Other measures
        use every layer.

    Returns:
      Scalar: the sum over layers (`"jmmd"`: one joint value) of the mean over the batch.

    Raises:
      ValueError: if the layers differ, none is given or chosen, or `measure` is unknown.
    """
    if source_maps.keys() != target_maps.keys() or not source_maps:
        raise ValueError(
            "both networks must give maps of the same layers, "
            f"got {sorted(source_maps)} and {sorted(target_maps)}"
        )
    check_choice("adapt.measure", measure, MEASURES)
    if measure == "jmmd":
        layers = joint_layers(source_maps, jmmd_layers)
        return losses.jmmd(
            [_normalise(source_maps[layer]) for layer in layers],
            [_normalise(target_maps[layer]) for layer in layers],
        )

    def of_layer(source: Array, target: Array) -> Array:
        if measure == "mmd":
            return losses.mmd(_normalise(source), _normalise(target))
        return jnp.mean(attention_distance(source, target, measure))

    by_layer = [of_layer(maps, target_maps[layer]) for layer, maps in source_maps.items()]
    return jnp.sum(jnp.stack(by_layer))


def joint_layers(maps: Mapping[str, Array], pattern: str) -> list[str]:
    """The layers in JMMD's joint kernel: of those that match, the last one of each map size.

    Args:
      maps: layer to attention maps, `[B, M]` each.
      pattern: regular expression that the whole name of a layer must match.

    Raises:
      ValueError: if no name matches.
    """
    # The number in `block10` counts, not its first digit.
    names = sorted(_matching(maps, pattern), key=lambda name: re.sub(r"\d+", _padded, name))
    return list({maps[name].shape[-1]: name for name in names}.values())


def normalised(maps: Array) -> Array:
    """Attention maps `[B,h*w]` of square images as `[B,h,w]`, each with L2 norm 1 (Eq. 5)."""
    side = round(maps.shape[1] ** 0.5)
    return _normalise(maps).reshape(-1, side, side)


def heat(maps: Mapping[str, Array], size: int) -> Array:
    """Averages the attention maps of several layers: `[B,size,size]` in [0, 1].

    Each map is normalised as in Eq. 5 and resized; the sum over layers is scaled to [0, 1].
    """
    total = losses.total(
        # The factor makes the mean square 1 at any size.
        jax.image.resize(square * square.shape[1], (len(square), size, size), "bilinear")
        for square in map(normalised, maps.values())
    )
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    return (total - low) / jnp.maximum(high - low, 1e-20)


def _padded(number: re.Match[str]) -> str:
    return number[0].zfill(4)


def _normalise(maps: Array) -> Array:
    """Divides each map `[B, M]` by its L2 norm; an all-zero map stays zero."""
    maps = maps.astype(jnp.float32)
    # The result does not depend on a map's scale, so neither does its gradient on how the peak
    # moves. Without this division, squares of large or small maps leave the range of float32.
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(maps), axis=-1, keepdims=True))
    scaled = maps / jnp.where(peak > _ZERO_MAP, peak, 1.0)
    # At least 1 unless the map is all zero.
    squared_norm = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
    return scaled / jnp.sqrt(jnp.maximum(squared_norm, 0.5))


def _matching(named: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    """The entries whose whole name matches `pattern`; ValueError if there are none."""
    chosen = {name: value for name, value in named.items() if re.fullmatch(pattern, name)}
    if not chosen:
        raise ValueError(f"no layer matches {pattern!r}; there are: {', '.join(sorted(named))}")
    return chosen
