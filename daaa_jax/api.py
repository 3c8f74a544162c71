"""The Python interface: train, load a network, predict, attention maps, translate."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from daaa_jax import config_files, inference, pipeline
from daaa_jax.data import photos
from daaa_jax.errors import UserError, check_choice
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models.network_file import Trained
from daaa_jax.runtime import accelerators, compilation, jax_settings

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a finished run.

    Attributes:
      workdir: working directory of the run.
      content: content of `result.json`.
    """

    workdir: Path
    content: Mapping[str, Any]

    @property
    def accuracy(self) -> Mapping[str, Any]:
        """Accuracies `source_test`, `source_only` and `target_test`, in [0, 1]; None if unlabelled.

        `target_test` contains `last`, `selected` (chosen without labels), `oracle` (chosen by
        target labels, for reference), and, if the run has a CycleGAN, `paired_last` and
        `paired_selected`.
        """
        return self.content["accuracy"]

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return Workdir(self.workdir).report


def load_config(config: str, settings: Mapping[str, Any] | None = None) -> ConfigDict:
    """Loads a config by name or file.

    Args:
      config: as for `--config`, such as `"digits:smoke"` or `"configs/office.py:w2a"`.
      settings: values to override, by dotted name: `{"adapt.beta": 0.3}`.

    Raises:
      UserError: if the config, a word of its argument or a setting is unknown, or a value has the
        wrong type.
    """
    return config_files.load(config, {name: str(v) for name, v in (settings or {}).items()})


@jax_settings.supported()
def run(config: ConfigDict | str, workdir: str | Path) -> Result:
    """Trains, or resumes a run.

    Args:
      config: a config, or the name or file of one, as for `load_config`.
      workdir: output folder.

    Returns:
      The result; empty on all processes but the first.

    Raises:
      UserError: for any error that the user can fix.
      Preempted: if SIGTERM ended the run; call again to resume.
    """
    config = (
        load_config(config) if isinstance(config, str) else config.copy_and_resolve_references()
    )
    compilation.configure(config.run)
    jax_settings.check_devices()
    accelerators.warn_if_unused()
    return Result(Workdir(workdir).path, pipeline.run(config, workdir))


@jax_settings.supported()
def load_network(workdir: str | Path, which: str = "selected", *, paired: bool = False) -> Trained:
    """Loads a network of a run.

    Args:
      workdir: working directory of the run.
      which: `selected` (chosen by a validator, without labels), `last` or `source`.
      paired: whether to average the posteriors of each image and its translation.

    Returns:
      The network; `about["classes"]` are the class names, `about["image_size"]` the height and
      width of the images.

    Raises:
      UserError: if the network is missing or damaged.
    """
    jax_settings.check_devices()
    return inference.load_network(Workdir(workdir), which, paired)


@jax_settings.supported()
def predict(network: Trained, images: np.ndarray | Sequence[str | Path]) -> np.ndarray:
    """Class probabilities of images, float32 `[N,K]`.

    Args:
      network: as returned by `load_network`.
      images: uint8 `[N,size,size,3]` with the network's `image_size`; or image files of any size.

    Raises:
      UserError: if there is no image, images have another shape or type, or a file cannot be read.
    """
    classify = jax.jit(functools.partial(inference.posterior, network))
    on_device = functools.partial(classify, jax.device_put(network.variables))
    return _batched(on_device, _pixels(network, images))


@jax_settings.supported()
def attention_maps(
    network: Trained, images: np.ndarray | Sequence[str | Path]
) -> dict[str, np.ndarray]:
    """Attention maps (Eq. 4) by aligned layer, float32 `[N,h,w]`, each with L2 norm 1.

    Args:
      network: as returned by `load_network`.
      images: as for `predict`.

    Raises:
      UserError: as for `predict`.
    """
    observe = jax.jit(functools.partial(inference.attention_maps, network))
    return _batched(observe, _pixels(network, images))


@jax_settings.supported()
def translate(workdir: str | Path, images: np.ndarray, direction: str) -> np.ndarray:
    """Translates images into the other domain's style, uint8 `[N,size,size,3]`.

    Args:
      workdir: working directory of a run with a CycleGAN.
      images: uint8 `[N,size,size,3]` with the CycleGAN's image size.
      direction: such as `mnist_to_mnist_m`.

    Raises:
      UserError: if the run has no generator for this direction, or images have another shape or
        type.
    """
    jax_settings.check_devices()
    generators = inference.load_generators(Workdir(workdir))
    functions = generators.functions()
    check_choice("direction", direction, functions, UserError)
    _check_shape(images := np.asarray(images), generators.image_size)
    return _batched(jax.jit(functions[direction]), images)


def _pixels(network: Trained, images: np.ndarray | Sequence[str | Path]) -> np.ndarray:
    size = network.about["image_size"]
    if isinstance(images, np.ndarray):
        _check_shape(images, size)
        return images
    if isinstance(images, str | Path):
        raise UserError(f"{images}: give a list of image files, such as [{str(images)!r}]")
    pixels = np.zeros((len(images), size, size, 3), np.uint8)
    files = [Path(file) for file in images]
    if unreadable := photos.read_all(files, pixels, "", network.about.get("ranges")):
        row, reason = next(iter(unreadable.items()))
        raise UserError(f"{images[row]} cannot be read: {reason}")
    return pixels


def _check_shape(images: np.ndarray, size: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise UserError(
            f"images are {images.dtype}{list(images.shape)}, expected uint8[N, {size}, {size}, 3]"
        )


def _batched(function: Callable[[np.ndarray], Any], images: np.ndarray) -> Any:
    """Applies a function in batches of up to `_BATCH` images; returns host arrays."""
    if not len(images):
        raise UserError("no images given")
    size = min(_BATCH, len(images))
    padded = np.pad(images, [(0, -len(images) % size), *[(0, 0)] * 3])
    parts = [jax.device_get(function(part)) for part in np.split(padded, len(padded) // size)]
    return jax.tree.map(lambda *each: np.concatenate(each)[: len(images)], *parts)
