"""Inference with a trained network: posteriors and attention maps of images."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from daaa_jax import attention, data, evaluation, models, translation
from daaa_jax.data import image_files, image_lists, photos
from daaa_jax.data.augment import crop_size, decode, encode
from daaa_jax.errors import UserError, check_choice, readable, writable
from daaa_jax.experiment import stages
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import network_file
from daaa_jax.runtime import image_grid
from daaa_jax.runtime.progress import Progress

NETWORKS = ("selected", "last", "source")

_LONGEST_STEM = 150  # bytes of an overlay's file name, which may have 255
_LEAST_WIDTH = 200  # pixels; smaller overlays are enlarged


def load_network(workdir: Workdir, which: str, paired: bool = False) -> network_file.Trained:
    """Loads a network of a finished run.

    Args:
      workdir: working directory of the run.
      which: one of `NETWORKS`.
      paired: whether to add G_TS, for inference on both images of a pair.

    Raises:
      UserError: if `which` is unknown, if the network, or a generator that it needs, is missing or
        damaged, or the network stores no weight gamma for the second image.
    """
    check_choice("network", which, NETWORKS, UserError)
    path = workdir.network(which)
    if not workdir.path.is_dir():
        raise UserError(f"--workdir={workdir}: there is no such folder")
    if not path.is_file():
        raise UserError(f"{path} is missing: {_why_missing(workdir, which)}")
    network = network_file.read(path)
    if not paired:
        return network
    generators, about = load_generators(workdir), network.about
    if "em" not in about:
        raise UserError(
            "--paired: the network has no weight for the second image: it is the source network, "
            "or was adapted by an older version"
        )
    if not (gamma := np.float32(about["em"]["gamma"])):
        print("--paired: gamma is 0, so that translations change no prediction", flush=True)
    params = generators.params[about["target"]]
    variables = {"classifier": network.variables, "generator": params, "gamma": gamma}
    return dataclasses.replace(network, variables=variables, generator=generators.module)


def photos_of(workdir: Workdir) -> list[Path]:
    """The folders of photos that a run was trained on; none if some are not on this machine."""
    try:
        return data.check(workdir.config().data)
    except (UserError, AttributeError):  # moved, or settings of an older version
        return []


def _why_missing(workdir: Workdir, which: str) -> str:
    stage = workdir.network(which).parent.name
    if (origin := workdir.origin(stage)) != workdir:
        return f"this run has its {stage} network from {origin}: give --workdir={origin}"
    if not workdir.config_json.is_file():
        return f"{workdir} is not the working directory of a run"
    config = workdir.config()
    if config.get("seeds", 1) > 1 and stage == "adapt":  # of an older version
        return f"each seed has its own, give --workdir={workdir.path / 'seeds' / str(config.seed)}"
    if stage == "source" and (file := config.get("source", {}).get("checkpoint")):
        return f"this run took its source network from source.checkpoint={file}"
    if workdir.marker(stage) is None:
        command = workdir.about().get("command", "")
        other = ", or give another --network" if which != "source" else ""
        return f"stage {stage} is not finished; resume it: {command}{other}"
    return "it was removed; give another --network or --workdir"


@dataclasses.dataclass(frozen=True)
class Generators:
    """The two generators of a run.

    Attributes:
      module: architecture of both generators.
      params: parameters of each, by the name of the domain whose images it translates.
      image_size: height and width of the images.
    """

    module: nn.Module
    params: Mapping[str, Any]
    image_size: int

    def functions(self) -> dict[str, Callable[[Array], Array]]:
        """Functions from uint8 to uint8 images, by direction, such as `mnist_to_mnist_m`."""

        def translate(params, images: Array) -> Array:
            return encode(self.module.apply({"params": params}, decode(images)))

        first, second = self.params
        return {
            f"{first}_to_{second}": functools.partial(translate, self.params[first]),
            f"{second}_to_{first}": functools.partial(translate, self.params[second]),
        }


def load_generators(workdir: Workdir) -> Generators:
    """Loads the generators of a run.

    Raises:
      UserError: if the run has none, or the file is missing or damaged.
    """
    path, config = workdir.generators, workdir.config()
    if not stages.trains_cyclegan(config):
        raise UserError(f"{workdir} has no generators: {stages.why_no_generators(config)}")
    if not path.is_file():
        raise UserError(f"{path} is missing: stage pair is not finished there")
    if not (about := network_file.read_about(path)):
        raise UserError(
            f"{path} does not name its domains: it is of an older version, run stage pair again"
        )
    module, _ = models.create_gan(ConfigDict(about["pair"]))
    tensors, domains = network_file.read_tensors(path), about["domains"]
    params = {origin: tensors[translation.direction(origin, domains)] for origin in domains}
    return Generators(module, params, about["image_size"])


def find_files(places: Sequence[str], lists: image_lists.Options) -> list[Path]:
    """Lists the given files, those named in lists, and all in folders, sorted; each once.

    Files that a system leaves in folders are left out, see `data.image_files`. A text that names
    no images is a file, and so is a link that leads nowhere, as of a shell's `*`.

    Raises:
      UserError: if a path does not exist or cannot be read, or there is no file.
    """
    found: list[Path] = []
    for place in map(Path, places):
        with readable(place):
            place.lstat()
        if os.path.isdir(place):
            files = image_files.scan(place)
            found += sorted([*files.images, *files.others, *(path for path, _ in files.unreadable)])
        else:
            # A pipe would wait for a writer.
            found += (os.path.isfile(place) and image_lists.images_in(place, lists)) or [place]
    if not found:
        raise UserError(f"no file in {', '.join(places)}")
    return list({os.path.abspath(path): path for path in found}.values())


def predict(
    network: network_file.Trained,
    files: Sequence[Path],
    *,
    batch_size: int,
    overlays: Path | None = None,
    overlay_layers: str = ".*",
) -> Iterator[tuple[Path, np.ndarray | None, str]]:
    """Classifies image files in batches.

    Args:
      network: as returned by `load_network`.
      files: of images of any size, and others.
      batch_size: images per batch.
      overlays: folder to write the images with attention overlays to; None writes none.
      overlay_layers: regular expression of the layers whose attention is shown.

    Yields:
      File, posterior `[K]` and an empty string; or file, None and the reason if unreadable.

    Raises:
      UserError: if no layer matches `overlay_layers`.
    """
    about, size = network.about, network.about["image_size"]
    batch_size = min(batch_size, len(files))
    crop = crop_size(size, ConfigDict(about["augment"]))
    scale = -(-_LEAST_WIDTH // crop)
    classify = jax.jit(functools.partial(posterior, network))

    @jax.jit
    def attend(variables, images):
        maps, view = _attention(network, variables, images, overlay_layers)
        return attention.heat(maps, crop), view

    if overlays is not None:
        with writable(f"--overlays={overlays}"):
            overlays.mkdir(parents=True, exist_ok=True)
    variables = jax.device_put(network.variables)
    with Progress("predict", len(files)) as progress:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            padded = np.zeros((batch_size, size, size, 3), np.uint8)
            unreadable = photos.read_all(batch, padded, "", about.get("ranges"))
            posteriors = np.asarray(classify(variables, padded))
            if overlays is not None:
                try:
                    maps, views = jax.device_get(attend(variables, padded))
                except ValueError as error:
                    raise UserError(f"--overlay_layers: {error}") from error
            for row, path in enumerate(batch):
                if overlays is not None and row not in unreadable:
                    stem = "_".join(filter(None, (path.parent.name, path.stem)))
                    stem = os.fsencode(stem)[-_LONGEST_STEM:].decode(errors="ignore")
                    place = overlays / f"{start + row:06d}_{stem}.png"
                    with writable(f"--overlays={overlays}"):
                        image_grid.write_png(place, overlay(views[row], maps[row]), scale)
                found = None if row in unreadable else posteriors[row]
                yield path, found, unreadable.get(row, "")
            progress.update(start + len(batch), {})


def posterior(network: network_file.Trained, variables, images: Array) -> Array:
    """Posterior p(z | x), float32 `[B,K]`, of uint8 images `[B,H,W,3]` of `image_size`."""
    inputs = variables, images, ConfigDict(network.about["augment"]), network.about["crops"]
    if network.generator is None:
        return evaluation.outputs(network.model, *inputs).posteriors
    return evaluation.paired_posteriors(network.model, network.generator, *inputs)


def attention_maps(network: network_file.Trained, images: ArrayLike) -> dict[str, Array]:
    """Attention maps `[B,h,w]` of uint8 images `[B,H,W,3]`, by aligned layer."""
    maps, _ = _attention(network, network.variables, images, network.about["layers"])
    return {name: attention.normalised(flat) for name, flat in maps.items()}


def _attention(network: network_file.Trained, variables, images: ArrayLike, layers: str):
    """Attention maps by layer and crops, see `evaluation.attention_of`; of the images alone."""
    alone = variables if network.generator is None else variables["classifier"]
    augment = ConfigDict(network.about["augment"])
    return evaluation.attention_of(network.model, alone, images, augment, layers)


def overlay(images: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Images `[...,H,W,3]` in [-1,1] as uint8, dimmed where attention is low, red where high."""
    weight = heat[..., None]
    grey = (images.mean(-1, keepdims=True) + 1) / 2
    colour = (1 - weight) * 0.5 * grey + weight * (0.6 * (images + 1) / 2 + [0.4, 0, 0])
    return np.clip(np.round(255 * colour), 0, 255).astype(np.uint8)
