"""Inputs of a run that were made elsewhere: weights, translations, a source network."""

from flax import linen as nn
from ml_collections import ConfigDict

from daaa_jax import models
from daaa_jax.data import external_translations
from daaa_jax.data.images import Images
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError
from daaa_jax.experiment.stages import NO_REUSE, directions, needs_translations, reads_weights
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import network_file, published_weights
from daaa_jax.runtime.files import expanded


def check(config: ConfigDict) -> None:
    """Checks that external files exist, before images are decoded for minutes.

    Weights that a config names are fetched, after all else is checked.

    Raises:
      UserError: if `run.reuse` is not a working directory, or a file or folder is missing.
    """
    other = config.run.reuse
    if other not in ("", NO_REUSE) and not Workdir(other).config_json.exists():
        raise UserError(f"run.reuse={other} is not a working directory: it has no config.json")
    external = {"source.checkpoint": config.source.checkpoint}
    if needs_translations(config):
        external["pair.translations"] = config.pair.translations
    for name, path in external.items():
        if path and not expanded(path).exists():
            raise UserError(f"{name}={path}: there is no such file or folder")
    if reads_weights(config):
        published_weights.identity(config.model.weights)


def translations(config: ConfigDict, task: Task) -> dict[str, Images]:
    """The images of `pair.translations` by direction; empty if the run uses none.

    Raises:
      UserError: if the images of the task are not files, or see `external_translations.read`.
    """
    folder = config.pair.translations
    if not (folder and needs_translations(config)):
        return {}
    if not task.source_files:
        raise UserError(
            f"pair.translations={folder} needs image files to match by name, and data.name="
            f"{config.data.name} has none: leave it out"
        )
    size, files = task.source_train.images.shape[1], (task.source_files, task.target_files)
    return {
        direction: Images(external_translations.read(folder, direction, originals, size))
        for direction, originals in zip(directions(task), files, strict=True)
    }


def source_network(config: ConfigDict, task: Task, model: nn.Module) -> models.Variables | None:
    """The variables of `source.checkpoint`; None if the run trains its source network.

    Raises:
      UserError: see `network_file.read_source_network`.
    """
    if not (place := config.source.checkpoint):
        return None
    shapes = network_file.variable_shapes(model, task.source_train.images.shape[1], config.augment)
    return network_file.read_source_network(place, config.model, shapes, task.class_names)
