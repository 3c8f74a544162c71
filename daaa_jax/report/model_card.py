"""The model card of an exported network: its data, settings, accuracy and limits."""

from collections.abc import Collection, Mapping
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
    about, config, result = network.about, workdir.config(), workdir.result() or {}
    side, crop, crops = about["image_size"], about["augment"]["crop"], about["crops"]
    seen = f"its central {crop}x{crop} pixels" if crop else "all of it"
    seen = f"{crops} crops of {crop or side}x{crop or side} pixels" if crops > 1 else seen
    accuracies = _accuracies(result, which)
    # Initial weights of the source network, or of the target network with `adapt.init=scratch`.
    start = f"pretrained weights: {config.model.weights or 'none'}"
    if config.source.checkpoint and config.adapt.init == "source":
        start = f"source network: {config.source.checkpoint}"
    return templates.render(
        "model_card.md",
        about=about,
        config=config,
        result=result,
        which=which,
        adapted=which != "source",
        ours=config.method == OURS,
        classes=about["classes"],
        left_out=sum(result.get("images", {}).get("left_out", {}).values()),
        side=side,
        seen=seen,
        accuracies=accuracies,
        labelled=all(value is not None for _, value in accuracies),
        paired=network.generator is not None,
        start=start,
        em=about.get("em"),
    )


def of_generators(side: int, directions: Collection[str]) -> str:
    """The model card of a run's generators, for images of `side` pixels, in Markdown."""
    return templates.render("generators_card.md", side=side, directions=sorted(directions))


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
