"""The Python interface: run, load a network, predict, see where it attends, translate."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from daaa_jax import config_files, inference, pipeline
from daaa_jax.data import photos
from daaa_jax.errors import UserError
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models.network_file import Trained

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run has reached.

    Attributes:
      workdir: of the run.
      content: as `result.json` has it.
    """

    workdir: Path
    content: Mapping[str, Any]

    @property
    def accuracy(self) -> Mapping[str, Any]:
        """`source_test`, `source_only` and `target_test`, in [0, 1]; None without labels.

        `target_test` has `last`, `selected` (chosen without labels), `oracle` (by target labels,
        for reference), and `paired_last`, `paired_selected` where the run has a CycleGAN.
        """
        return self.content["accuracy"]

    @property
    def report(self) -> Path:
        """The HTML page."""
        return Workdir(self.workdir).report


def load_config(config: str, settings: Mapping[str, Any] | None = None) -> ConfigDict:
    """A config by file or name, as `--config` takes it.

    Args:
      config: such as `"digits:smoke"` or `"configs/office.py:w2a"`.
      settings: by dotted name, such as `{"adapt.beta": 0.3}`.

    Raises:
      UserError: if there is no such config, word or setting, or a value has another type.
    """
    texts = {name: str(value) for name, value in (settings or {}).items()}
    return config_files.load(config, texts)


def run(config: ConfigDict | str, workdir: str | Path) -> Result:
    """Trains, or resumes a run; on the first of several processes alone there is a result.

    Args:
      config: as `load_config` gives it, or what that takes.
      workdir: the folder for everything that the run writes.

    Raises:
      UserError: for anything that the user can fix.
      Preempted: if SIGTERM has ended the run; the same call resumes it.
    """
    config = (
        load_config(config) if isinstance(config, str) else config.copy_and_resolve_references()
    )
    return Result(Workdir(workdir).path, pipeline.run(config, workdir))


def load_network(workdir: str | Path, which: str = "selected", *, paired: bool = False) -> Trained:
    """A network of a run.

    Args:
      workdir: of the run.
      which: `selected` (by a validator without labels), `last` or `source`.
      paired: for inference on both images of a pair, each image and its translation.

    Returns:
      The network; `about["classes"]` are its classes' names, `about["image_size"]` the height and
      width of its images.

    Raises:
      UserError: if it is not there, or damaged.
    """
    place = Workdir(workdir)
    network = inference.load_network(place, which)
    return (
        inference.with_second_image(network, inference.load_generators(place))
        if paired
        else network
    )


def predict(network: Trained, images: np.ndarray | Sequence[str | Path]) -> np.ndarray:
    """Probabilities of the classes, float32 `[N,K]`.

    Args:
      network: as `load_network` gives it.
      images: uint8 `[N,size,size,3]`, `size` as the network has it; or image files of any size.

    Raises:
      UserError: if images have another size, or a file cannot be read.
    """
    pixels, variables = _pixels(network, images), jax.device_put(network.variables)
    classify = jax.jit(lambda variables, batch: inference.posterior(network, variables, batch))
    return _batched(lambda batch: classify(variables, batch), pixels)


def attention_maps(
    network: Trained, images: np.ndarray | Sequence[str | Path]
) -> dict[str, np.ndarray]:
    """Where a network attends: by aligned layer, float32 `[N,h,w]`, each map of L2 norm 1 (Eq. 4).

    Args:
      network: as `load_network` gives it.
      images: as for `predict`.

    Raises:
      UserError: as `predict`.
    """
    pixels, observe = _pixels(network, images), inference.attention_observer(network)
    return _batched(observe, pixels)


def translate(workdir: str | Path, images: np.ndarray, direction: str) -> np.ndarray:
    """Images in the other domain's style, uint8 `[N,size,size,3]`.

    Args:
      workdir: of a run with a CycleGAN.
      images: uint8 `[N,size,size,3]`, of the CycleGAN's size.
      direction: such as `mnist_to_mnist_m`.

    Raises:
      UserError: if the run has no generators, or none of that direction, or images do not suit.
    """
    generators = inference.load_generators(Workdir(workdir))
    functions = generators.functions()
    if direction not in functions:
        raise UserError(
            f"direction={direction} is not known: expected one of {', '.join(functions)}"
        )
    _check_shape(images, generators.image_size)
    return _batched(jax.jit(functions[direction]), images)


def _pixels(network: Trained, images: np.ndarray | Sequence[str | Path]) -> np.ndarray:
    size = network.about["image_size"]
    if isinstance(images, np.ndarray):
        _check_shape(images, size)
        return images
    pixels = np.zeros((len(images), size, size, 3), np.uint8)
    if unreadable := photos.read_all([Path(file) for file in images], pixels, ""):
        row, reason = next(iter(unreadable.items()))
        raise UserError(f"{images[row]} cannot be read: {reason}")
    return pixels


def _check_shape(images: np.ndarray, size: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise UserError(
            f"images are {images.dtype}{list(images.shape)}, expected uint8[N, {size}, {size}, 3]"
        )


def _batched(function: Callable[[np.ndarray], Any], images: np.ndarray) -> Any:
    """A function of images, batch by batch of one size, on the host."""
    padding = [(0, -len(images) % _BATCH), *[(0, 0)] * 3]
    padded = np.pad(images, padding)
    parts = [
        jax.device_get(function(padded[first : first + _BATCH]))
        for first in range(0, len(padded), _BATCH)
    ]
    return jax.tree.map(lambda *each: np.concatenate(each)[: len(images)], *parts)
