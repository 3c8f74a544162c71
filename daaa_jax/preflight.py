"""What would end a run after hours is looked for before its first stage."""

import functools
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from daaa_jax import adaptation, attention, baselines, models
from daaa_jax.baselines import training
from daaa_jax.data.augment import evaluation_views
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError
from daaa_jax.models import pretrained
from daaa_jax.runtime import markers
from daaa_jax.runtime.finished import NONE


def check_workdir(workdir: Path) -> None:
    """Makes sure that a working directory can be written, without making it.

    Raises:
      UserError: if it cannot.
    """
    if re.match(r"[a-z0-9]+:/", str(workdir)):
        raise UserError(
            f"--workdir={workdir} is an address, and results are written to a folder: mount the "
            "bucket as one, or choose another"
        )
    existing = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir={workdir}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: {existing} may not be written")


def check_brought(config: ConfigDict) -> None:
    """Makes sure that what a user brings is there, before images are decoded for minutes.

    Raises:
      UserError: if `run.reuse` is no working directory, or the file of weights is missing.
    """
    other = config.run.reuse
    if other not in ("", NONE) and not (Path(other).expanduser() / markers.CONFIG_NAME).exists():
        raise UserError(
            f"run.reuse={other} is no working directory: it holds no {markers.CONFIG_NAME}"
        )
    if _reads_weights(config):
        pretrained.identity(config.model.weights)


def _reads_weights(config: ConfigDict) -> bool:
    """Whether a network begins with pretrained weights: the source network, or one from scratch."""
    return not config.source.checkpoint or config.adapt.init == "scratch"


def check_networks(config: ConfigDict, task: Task) -> None:
    """Makes sure that networks, weights and aligned layers can be had for the images.

    Raises:
      UserError: says what does not suit.
    """
    size = task.source_train.images.shape[1]
    ours = config.method == baselines.OURS
    pairs = adaptation.trains_cyclegan(config)
    for name, value, suits in (
        ("augment.crop", config.augment.crop, config.augment.crop <= size),
        ("pair.enlarge", config.pair.enlarge, not (pairs and 0 < config.pair.enlarge < size)),
    ):
        if not suits:
            raise UserError(f"{name}={value} does not suit images of {size}x{size}")
    if config.method == "upper_bound" and (task.evaluation.target_train.labels < 0).any():
        raise UserError(
            "method=upper_bound is trained on target labels, and some target images have none"
        )
    key, image = jax.random.key(0), jnp.zeros((1, *task.source_train.images.shape[1:]))
    try:
        if pairs:
            for network in models.create_gan(config.pair):
                jax.eval_shape(network.init, key, image)
        model = models.create_classifier(
            config.model, len(task.class_names), config.adapt.attention
        )
        init = functools.partial(model.init, train=False, mutable=True)  # with what it sows
        view = evaluation_views(image, config.augment, 1)[0]
        shapes = jax.eval_shape(init, key, view)
        if not ours:
            jax.eval_shape(functools.partial(training.create_auxiliary, config, model, view), key)
    except ValueError as error:
        raise UserError(f"the networks do not suit images of {size}x{size}: {error}") from error
    if _reads_weights(config):
        models.pretrained_variables(
            config.model, {name: shapes[name] for name in ("params", "batch_stats")}
        )
    try:
        aligned = attention.collect(shapes["intermediates"], config.adapt.layers)
        if config.adapt.measure == "jmmd":
            attention.collect({k: (v,) for k, v in aligned.items()}, config.adapt.jmmd_layers)
    except ValueError as error:
        raise UserError(f"adapt.layers and adapt.jmmd_layers: {error}") from error
