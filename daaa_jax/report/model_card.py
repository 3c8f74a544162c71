"""The model card of an exported network: its data, settings, accuracy and limits."""

from collections.abc import Mapping
from typing import Any

from daaa_jax.experiment.stages import OURS
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import network_file
from daaa_jax.report import templates

_MEANINGS = {
    "source_test": "source network, test images of the source domain",
    "source_train": "source network, the source domain's training images",
    "source_only": "source network, target domain",
}


def write(network: network_file.Trained, workdir: Workdir, which: str) -> str:
    """The model card of a network in a working directory, in Markdown."""
    config, result = workdir.config(), workdir.result() or {}
    accuracies = _accuracies(result, which)
    return templates.render(
        "model_card.md",
        about=network.about,
        config=config,
        result=result,
        which=which,
        ours=config.method == OURS,
        accuracies=accuracies,
        labelled=all(value is not None for _, value in accuracies),
        paired=network.generator is not None,
    )


def _accuracies(result: Mapping[str, Any], which: str) -> list[tuple[str, float | None]]:
    if not result:
        return []
    reached = result["accuracy"]
    target = reached["target_test"]
    rows = [(text, reached[key]) for key, text in _MEANINGS.items() if key in reached]
    if which in target:
        rows.append(("this network, target domain", target[which]))
    if which != "source" and f"paired_{which}" in target:
        rows.append(("this network on image and translation", target[f"paired_{which}"]))
    return rows
