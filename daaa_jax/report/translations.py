"""The translations: how they look, whether networks still see the label, and what they copy."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from daaa_jax.report import charts, parts
from daaa_jax.runtime import image_grid

NETWORKS = {"source": "source network", "adapted": "adapted network"}


def section(
    pairs: bytes | None,
    colours: Mapping[str, Mapping[str, float]],
    figures: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    class_names: Sequence[str],
) -> str:
    """Pictures of the pairs and of the nearest real images, and how translations are classified.

    Args:
      pairs: the picture of the pairs, a PNG.
      colours: see `colours.of_translations`; empty where nothing was translated here.
      figures: of `audit.json`; empty before a run ends.
      arrays: of `audit.npz`; likewise.
      class_names: of all classes.
    """
    shown = [
        _pairs(pairs) if pairs else "",
        _colours(colours) if colours else "",
        _labels(figures.get("translated", {}), class_names),
        _nearest(arrays) if "nearest" in arrays else "",
    ]
    return f"<h2>Translations</h2>{''.join(shown)}" if any(shown) else ""


def _pairs(pairs: bytes) -> str:
    return parts.picture(
        parts.compressed(pairs),
        "images of both domains and their translations",
        "Rows: images of the first domain, in the other's style, and back; then the same for the "
        "second domain. Objects should stay what they are, and only their style change.",
    )


def _colours(colours: Mapping[str, Mapping[str, float]]) -> str:
    told = "; ".join(
        f"{html.escape(direction.replace('_to_', ' to '))} <b>{distance['translations']:.3f}</b>, "
        f"the originals {distance['originals']:.3f}"
        for direction, distance in colours.items()
    )
    return (
        f"<p>How far the mean colours of translations lie from those of real images: {told}.</p>"
        "<p class=faint>Energy distance of colours from -1 to 1. It needs no label: of several "
        "CycleGANs, one that paints few of the colours there are has the larger one.</p>"
    )


def _labels(translated: Mapping[str, Sequence], class_names: Sequence[str]) -> str:
    matrices = {name: np.array(translated[name]) for name in NETWORKS if name in translated}
    if not matrices or not class_names:
        return ""
    told = " and ".join(
        f"the {NETWORKS[name]} sees {100 * np.trace(matrix) / max(matrix.sum(), 1):.1f} %"
        for name, matrix in matrices.items()
    )
    drawn = "".join(
        f"<figure>{charts.matrix(f'flips-{name}', matrix, class_names, 'label', NETWORKS[name])}"
        "</figure>"
        for name, matrix in matrices.items()
    )
    return (
        f"<p>Of the source images in the target's style, {told} as what their labels say.</p>"
        f"<details><summary>Which classes change</summary><div class=charts>{drawn}</div>"
        "<p class=faint>Rows: the label of the image; columns: the class that a network sees in "
        "its translation.</p></details><p class=faint>The source network may fail on the style "
        "alone. Where the adapted network fails too, a class may have been translated into "
        "another.</p>"
    )


def _nearest(arrays: Mapping[str, np.ndarray]) -> str:
    rows = np.stack([arrays[name] for name in ("originals", "translations", "nearest")])
    return parts.picture(
        parts.jpeg(image_grid.grid(rows.astype(np.float32) / 127.5 - 1)),
        "source images, their translations and the real target images nearest to those",
        "Rows: source images, their translations, and of the real target training images (at most "
        "5,000 of them) the one whose pixels differ least from each translation. A generator that "
        "repeats training images would make the last two rows the same.",
    )
