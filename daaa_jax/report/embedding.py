"""Both domains in the plane, as the source network and the adapted network see them."""

from collections.abc import Mapping

import numpy as np

from daaa_jax.report import charts

_NETWORKS = {"source": "before: source network", "adapted": "after: adapted network"}
_DOMAINS = ("source", "target")


def section(arrays: Mapping[str, np.ndarray]) -> str:
    """A chart of each network; empty before a run ends.

    Args:
      arrays: of `audit.npz`.
    """
    if "plane_source_source" not in arrays:
        return ""
    drawn = "".join(
        f"<figure>{_chart(network, title, arrays)}</figure>" for network, title in _NETWORKS.items()
    )
    return (
        f"<h2>Features</h2><div class=charts>{drawn}</div><p class=faint>t-SNE of what the "
        "classifier's last layer sees. Where adaptation has worked, images of a class lie "
        "together, whichever their domain. Distances between far groups mean nothing.</p>"
    )


def _chart(network: str, title: str, arrays: Mapping[str, np.ndarray]) -> str:
    points = {domain: arrays[f"plane_{network}_{domain}"] for domain in _DOMAINS}
    classes = {domain: arrays[f"classes_{domain}"] for domain in _DOMAINS}
    return charts.scatter(f"plane-{network}", points, classes, title)
