"""Both domains in the plane, as the source network and the adapted network see them."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from daaa_jax.report import charts

_NETWORKS = {"source": "before: source network", "adapted": "after: adapted network"}
_DOMAINS = ("source", "target")


def section(arrays: Mapping[str, np.ndarray], class_names: Sequence[str]) -> str:
    """A chart of each network; empty before a run ends.

    Args:
      arrays: of `audit.npz`.
      class_names: of all classes.
    """
    if "plane_source_source" not in arrays:
        return ""
    drawn = "".join(
        f"<figure>{_chart(network, title, arrays)}</figure>" for network, title in _NETWORKS.items()
    )
    return (
        f"<h2>Features</h2><div class=charts>{drawn}</div><p class=faint>t-SNE of what the "
        "classifier's last layer sees. Where adaptation has worked, images of a class lie "
        "together, whichever their domain. Distances between far groups mean nothing."
        f"{_key(class_names)}</p>"
    )


def _key(class_names: Sequence[str]) -> str:
    """What the numbers in the charts stand for, where they are not the classes themselves."""
    numbers = [str(number) for number in range(len(class_names))]
    if len(numbers) > charts.NUMBERED or list(class_names) == numbers:
        return ""
    named = (f"{n} {html.escape(name)}" for n, name in zip(numbers, class_names, strict=True))
    return f" Classes: {', '.join(named)}."


def _chart(network: str, title: str, arrays: Mapping[str, np.ndarray]) -> str:
    points = {domain: arrays[f"plane_{network}_{domain}"] for domain in _DOMAINS}
    classes = {domain: arrays[f"classes_{domain}"] for domain in _DOMAINS}
    return charts.scatter(f"plane-{network}", points, classes, title)
