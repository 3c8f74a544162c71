"""What the outcome of each stage depends on: where any of it differs, the stage is another one."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from daaa_jax import adaptation, baselines, models, workdir
from daaa_jax.data.images import Images
from daaa_jax.data.types import Task
from daaa_jax.models import pretrained
from daaa_jax.runtime import markers

# Raised when a change of the code changes what a stage gives, so that what an older version has
# finished is not taken for the same.
VERSIONS = {"pair": 3, "translate": 3, "source": 3, "adapt": 3}


def of_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a stage's settings those that no version of the program and no kind of device decides."""
    kept = {name: value for name, value in settings.items() if name not in ("version", "start")}
    if isinstance(model := kept.get("model"), Mapping):
        kept["model"] = {name: value for name, value in model.items() if name != "dtype"}
    return kept


def of_stages(
    config: ConfigDict,
    task: Task,
    brought_translations: Mapping[str, Images],
    brought_source: models.Variables | None,
) -> dict[str, dict[str, Any]]:
    """Settings, seed and inputs of each stage.

    Args:
      config: the whole config.
      task: the two domains.
      brought_translations: those that a user brings, by direction; empty if none.
      brought_source: the source network that a user brings, if any.

    Returns:
      By stage, what `runtime.finished.Stages` compares: names, numbers and checksums.
    """
    what = workdir.what(config)
    images = {
        task.source_name: markers.checksum(task.source_train.images),
        task.target_name: markers.checksum(task.target_train.images),
    }
    model = what["model"]
    if "dtype" in model:
        model["dtype"] = models.computation_type(config.model)
    if brought_source is None or config.adapt.init == "scratch":
        model["weights"] = pretrained.identity(config.model.weights)
    pair = {"images": images, "pair": what["pair"]}
    translate = pair | {"translate": what["translate"]}
    source = {name: what[name] for name in ("augment", "source")} | {
        "model": model,
        "images": {task.source_name: images[task.source_name]},
        "labels": markers.checksum(task.source_train.labels),
    }
    adapt = source | {name: what[name] for name in ("seed", "adapt", "em", "evaluate")}
    if adaptation.needs_translations(config):
        adapt |= translate
    if config.method != baselines.OURS:
        adapt["method"] = {config.method: what["baselines"].get(config.method)}
    adapt |= {
        "images": images,
        "classes": task.class_names,
        "measured": {
            name: markers.checksum(vars(getattr(task.evaluation, name)))
            for name in ("source_test", "target_test", "target_train", "source_held_out")
            if getattr(task.evaluation, name) is not None
        },
    }
    if config.adapt.init == "scratch" and config.model.weights:
        adapt["start"] = "pretrained"  # once it was random
    if brought_translations:
        adapt["pair"] = {
            name: [markers.checksum(part) for part in images.parts]
            for name, images in brought_translations.items()
        }
    if brought_source:
        adapt["source"] = markers.checksum(brought_source)
    stages = {"pair": pair, "translate": translate, "source": source, "adapt": adapt}
    return {name: needs | {"version": VERSIONS[name]} for name, needs in stages.items()}
