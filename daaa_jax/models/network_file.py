"""Trained classifiers as files: variables, and metadata to build and use the network."""

import dataclasses
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save

from daaa_jax import models
from daaa_jax.data.augment import evaluation_views
from daaa_jax.errors import UserError, counted
from daaa_jax.models import Variables, pretrained, weight_file
from daaa_jax.runtime import files
from daaa_jax.runtime import mesh as meshes

NAME = "network.safetensors"
_ABOUT = "daaa_jax"  # key in a file's metadata


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained classifier with its metadata.

    Attributes:
      model: the network.
      variables: parameters and batch statistics; with a `generator`, the variables of
        `evaluation.paired_posteriors`.
      about: `classes` (names, in the order of the logits), `image_size` (to which images are
        resized), `augment` and `crops` (for `evaluation_views`), `model` and `attention` (for
        `create_classifier`), `layers` (the aligned ones), and any other entries of the file.
      generator: G_TS, for inference on both images of a pair; None for inference on single images.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    about: Mapping[str, Any]
    generator: nn.Module | None = None


def write(path: Path, tree: Variables, about: Mapping[str, Any]) -> None:
    """Writes a tree of arrays, such as a classifier's variables, atomically.

    Args:
      path: the file, `.safetensors`.
      tree: for a classifier its parameters and batch statistics.
      about: metadata for `read_about`, see `Trained`; values that `files.plain` supports.
    """
    flat = traverse_util.flatten_dict(meshes.to_host(tree), sep="/")
    tensors = {name: np.ascontiguousarray(value) for name, value in flat.items()}
    files.write_bytes(path, save(tensors, {_ABOUT: json.dumps(files.plain(about))}))


def read_tensors(path: Path) -> Variables:
    """Reads a tree written by `write`.

    Raises:
      UserError: if the file is missing or damaged.
    """
    return traverse_util.unflatten_dict(weight_file.read(path, "the file"), sep="/")


def read(path: Path) -> Trained:
    """Reads a classifier written by `write`, to compute in float32 whatever it was trained in.

    Raises:
      UserError: if the file is missing, damaged, or was not written by `write`.
    """
    tensors, about = weight_file.read(path, "the network"), read_about(path)
    if not about:
        raise UserError(f"{path} was not written by daaa_jax: it has no metadata")
    settings = ConfigDict(about["model"] | {"dtype": "float32"})
    model = models.create_classifier(settings, len(about["classes"]), about["attention"])
    shapes = variable_shapes(model, about["image_size"], ConfigDict(about["augment"]))
    return Trained(model, pretrained.fit(tensors, (), shapes, path, whole=True), about)


def read_about(path: Path) -> dict[str, Any]:
    """Reads the metadata of a file; empty if another program wrote it."""
    if weight_file.kind(path) != "safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a sound safetensors file: {error}") from error


def read_source_network(
    place: str, settings: ConfigDict, shapes: Variables, classes: Sequence[str]
) -> Variables:
    """Reads an external source network, for `source.checkpoint`.

    Args:
      place: a working directory, or a file of weights, including the classifier layer's.
      settings: `config.model`.
      shapes: shapes of the network's variables, from `variable_shapes`.
      classes: names of the task's classes, in the order of the logits.

    Raises:
      UserError: if the file cannot be read, or contains another network or other classes.
    """
    path = Path(os.path.expanduser(place))
    if os.path.isdir(path):
        path = path / "source" / NAME
        if not path.is_file():
            raise UserError(
                f"source.checkpoint={place} is a folder without source/{NAME}: expected a working "
                f"directory whose source stage is finished, or a file of weights"
            )
    tensors = weight_file.read(path, "source.checkpoint")
    about = read_about(path)
    network, names = models.CLASSIFIERS[settings.name]
    # Settings missing from an older file had the network's defaults.
    attributes = inspect.signature(network).parameters.items() if about else ()
    saved = {name: attribute.default for name, attribute in attributes} | about.get("model", {})
    for name in ("name", "version", "inputs", "standardize"):
        ours, theirs = settings.get(name), saved.get(name)
        if None not in (ours, theirs) and ours != theirs:
            raise UserError(f"source.checkpoint={place}: its model.{name} is {theirs}, not {ours}")
    found = about.get("classes", list(classes))
    if found != list(classes):
        raise UserError(
            f"source.checkpoint={place} has {counted(len(found), 'class')}, "
            f"{', '.join(found[:5])} …; the task has {len(classes)}, {', '.join(classes[:5])} …"
        )
    return pretrained.fit(tensors, names, shapes, path, whole=True)


def variable_shapes(model: nn.Module, image_size: int, augment: ConfigDict) -> Variables:
    """Shapes of a classifier's variables, without allocating them."""

    def init(key):
        image = jnp.zeros((1, image_size, image_size, 3))
        return models.initial_variables(key, model, evaluation_views(image, augment, 1)[0])

    return jax.eval_shape(init, jax.random.key(0))
