"""Where the networks attend, as in Fig. 1 of the paper."""

from collections.abc import Mapping, Sequence

import numpy as np

from daaa_jax.inference import overlay
from daaa_jax.report import parts
from daaa_jax.runtime import image_grid


def section(
    arrays: Mapping[str, np.ndarray],
    layers: Sequence[str],
    ceiling: Mapping[str, np.ndarray],
) -> str:
    """A picture for each layer; empty before a run ends.

    Args:
      arrays: of `audit.npz`.
      layers: names of those that it holds.
      ceiling: the same, of a run that was trained on target labels; empty if none.
    """
    if "examples" not in arrays:
        return ""
    networks = {"source network": arrays["attention_source"]}
    if ceiling:
        networks["network trained on target labels"] = ceiling["attention_adapted"]
    networks["adapted network"] = arrays["attention_adapted"]
    images = arrays["examples"].astype(np.float32) / 127.5 - 1
    drawn = "".join(
        parts.picture(
            parts.jpeg(image_grid.grid(_rows(images, [maps[n] for maps in networks.values()]))),
            f"target images and where the networks attend in layer {layer}",
            f"Layer {layer}. Rows: target images, {', '.join(networks)}.",
        )
        for n, layer in enumerate(layers)
    )
    return (
        f"<h2>Attention</h2><div class=charts>{drawn}</div><p class=faint>Red where the squared "
        "activations of a layer, summed over its channels, are largest. The adapted network should "
        "attend to the object, as the source network does on its own domain.</p>"
    )


def _rows(images: np.ndarray, attention: Sequence[np.ndarray]) -> np.ndarray:
    shown = [
        np.stack(
            [
                overlay(image, heat.astype(np.float32) / 255).astype(np.float32) / 127.5 - 1
                for image, heat in zip(images, maps, strict=True)
            ]
        )
        for maps in attention
    ]
    return np.stack([images, *shown])
