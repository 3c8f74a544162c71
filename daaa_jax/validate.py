"""Checks settings and networks before a run starts, so that mistakes fail early."""

import functools
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax import attention, baselines, em, losses, models, schedules, source
from daaa_jax.baselines import training as baseline_training
from daaa_jax.data import augment
from daaa_jax.data.batches import gather
from daaa_jax.data.pairs import GROUPS
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError, check_choice, check_pattern, counted
from daaa_jax.evaluation import model_selection, second_view
from daaa_jax.experiment.stages import OURS, reads_weights, trains_cyclegan
from daaa_jax.models import Variables, resnet
from daaa_jax.runtime import files
from daaa_jax.runtime import mesh as meshes
from daaa_jax.training import loop, optimizers
from daaa_jax.training.rounds import TargetTraining

_TRAINED = ("pair", "source", "adapt")
_CHOICES = {
    "method": (OURS, *baselines.METHODS),
    "pair.adversarial": losses.ADVERSARIAL,
    "adapt.init": ("source", "scratch"),
    "adapt.batch_norm": ("batch", "frozen"),
    "adapt.attention": attention.KINDS,
    "adapt.measure": attention.MEASURES,
    "em.normalize": em.NORMALIZERS,
    "em.posterior": em.POSTERIORS,
    "em.second_view": em.SECOND_VIEWS,
    "evaluate.crops": augment.CROPS,
    "evaluate.validator": ("auto", *model_selection.VALIDATORS),
    "data.on_error": ("raise", "skip"),
    "data.unknown_classes": ("raise", "ignore"),
    "model.name": models.CLASSIFIERS,
    "model.dtype": models.DTYPES,
    "model.version": resnet.VERSIONS,
    "model.inputs": resnet.INPUTS,
    **{f"{stage}.optimizer.name": optimizers.NAMES for stage in _TRAINED},
    **{f"{stage}.optimizer.schedule": schedules.KINDS for stage in _TRAINED},
}
# Numbers that must be at least 1, by group; all others must be at least 0.
_POSITIVE = {
    "pair": ("epochs", "pools", "filters", "discriminator_filters", "discriminator_layers"),
    "translate": ("part_size",),
    "source": ("epochs", "round_epochs"),
    "adapt": ("rounds", "round_steps"),
    "em": ("refresh_every",),
    "data": ("image_size",),
    "run": ("log_every", "checkpoint_every"),
    "evaluate": ("validation_images", "audit_images"),
    "baselines": ("jan_a.width", "pixelda.noise"),
}
_LARGEST_SEED = 2**32 - 1  # JAX maps some larger seeds to the same key; scikit-learn refuses them
_DIGIT_SIZE = 32  # pixels; photos have a setting
_BATCHES = ("pair", "translate", "source", "adapt", "evaluate")


def resolve(config: ConfigDict, devices: int, started: ConfigDict | None = None) -> None:
    """Sets the settings that follow from others or from the number of devices, in place.

    `pair.batch_size=0` becomes one image per device, and `pair.pools=0` one pool per image of a
    batch. A resumed run keeps the values that it was started with. `evaluate.validator=auto`
    becomes the validator's name.

    Args:
      config: the whole config; modified.
      devices: number of devices.
      started: the config of the run to resume, if any.
    """
    if config.evaluate.validator == "auto":
        rewarded = rewards_confidence(config)
        config.evaluate.validator = "neighbourhood_density" if rewarded else "information"
    pair = config.pair
    if pair.batch_size == 0:
        pair.batch_size = devices if started is None else started.pair.batch_size
    if pair.pools == 0:
        pair.pools = pair.batch_size if started is None else started.pair.pools


def rewards_confidence(config: ConfigDict) -> str:
    """The setting by which training itself raises the information score; empty if none does."""
    baseline = baselines.METHODS.get(config.method)
    if baseline and baseline.rewards_confidence:
        return f"method={config.method}"
    for name in ("information", "confusion"):
        if config.method == OURS and config.adapt[name]:
            return f"adapt.{name}={config.adapt[name]}"
    return ""


def check_settings(config: ConfigDict, mesh: Mesh) -> None:
    """Checks that all settings are valid.

    Args:
      config: the whole config.
      mesh: the devices that batches are split over.

    Raises:
      UserError: names the first invalid setting and its valid values.
    """
    settings = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for name, choices in _CHOICES.items():
        if name in settings:
            check_choice(name, settings[name], choices, UserError)
    _check_numbers(settings)
    for name in ("adapt.layers", "adapt.jmmd_layers"):
        check_pattern(name, settings[name])
    if config.method == OURS:
        _check_em(config)
    validator = config.evaluate.validator
    if validator in model_selection.REWARD_CONFIDENCE and (why := rewards_confidence(config)):
        raise UserError(
            f"evaluate.validator={validator} rewards confident predictions, as the training itself "
            f"does with {why}: set it to auto or neighbourhood_density"
        )
    for name in ("confusion", "information"):
        if config.method == OURS and config.adapt[name] and not config.adapt.mix.t:
            raise UserError(
                f"adapt.{name} needs real target images: set it to 0, or adapt.mix.t above"
            )
    if validator in model_selection.NEED_HELD_OUT and not config.data.source_holdout:
        raise UserError(
            f"evaluate.validator={validator} needs labelled source images that are not trained on: "
            "set data.source_holdout, for instance to 0.1"
        )
    baseline = baselines.METHODS.get(config.method)
    if baseline and baseline.fixes_classifier and config.adapt.init == "scratch":
        raise UserError(
            f"method={config.method} keeps the source network's last layer: set adapt.init=source"
        )
    _check_sizes(config)
    _check_batches(config, mesh)


def _check_sizes(config: ConfigDict) -> None:
    size = config.data.get("image_size", _DIGIT_SIZE)
    crop, enlarge = config.augment.crop, config.pair.enlarge
    if crop > size:
        raise UserError(f"augment.crop={crop} does not fit images of {size}x{size}")
    if trains_cyclegan(config) and 0 < enlarge < size:
        raise UserError(f"pair.enlarge={enlarge} does not fit images of {size}x{size}")
    if not 0 < config.augment.area <= 1:
        raise UserError(f"augment.area={config.augment.area} must be above 0 and at most 1")


def _check_numbers(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if isinstance(value, tuple) and not all(type(n) is int and n >= 1 for n in value):
            raise UserError(f"{name}={value}: expected integers of at least 1")  # widths
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise UserError(f"{name}={value} is not a valid number")
        group, _, rest = name.partition(".")
        least = 1 if rest in _POSITIVE.get(group, ()) else 0
        if value < least and name != "run.resident_mib":
            raise UserError(f"{name}={value} must be at least {least}")
        if name.endswith("seed") and value > _LARGEST_SEED:
            raise UserError(f"{name}={value} is too large: at most {_LARGEST_SEED}")
        if name.endswith(("em.decay", "decay_fraction", "source_holdout")) and value > 1:
            raise UserError(f"{name}={value} must be between 0 and 1")
    for name in ("em.tolerance", "baselines.ada.temperature", "baselines.mcc.temperature"):
        if settings[name] <= 0:
            raise UserError(f"{name}={settings[name]} must be greater than 0")
    if not any(settings[f"adapt.mix.{group}"] for group in GROUPS):
        raise UserError("adapt.mix: at least one of s, t_f, t and s_f must be greater than 0")
    if (threshold := settings["em.threshold"]) > 2:
        raise UserError(
            f"em.threshold={threshold} is compared with probabilities: expected 0 to 1, "
            "or a value above 1, up to 2, to keep no sample"
        )


def _check_em(config: ConfigDict) -> None:
    """Checks when EM starts, and that the second view's weight can be measured."""
    start, every = config.em.start_step, config.em.refresh_every
    if 0 < start < every:
        raise UserError(
            f"em.start_step={start} lies before the first sync of the posterior network "
            f"(em.refresh_every={every}), which is not adapted until then: set it to {every}, or "
            "to 0 if the initial network is good enough"
        )
    uses_targets = config.adapt.mix.t or config.adapt.mix.s_f
    if uses_targets and config.adapt.init == "scratch" and start < every:
        raise UserError(
            f"em.start_step={start}: with adapt.init=scratch there are no useful posteriors before "
            f"the first sync; set it to em.refresh_every={every} or more"
        )
    if config.em.posterior == "paired" and second_view.measured_at(config) is None:
        raise UserError(
            f"em.posterior=paired: em.refresh_every={every} exceeds the "
            f"{counted(config.adapt.rounds * config.adapt.round_steps, 'update')} of the run, so "
            "the posterior network never changes and the second view's weight cannot be measured; "
            "lower it, or set em.posterior=target"
        )
    if uses_targets and config.em.decay and config.adapt.round_steps % every:
        raise UserError(
            f"em.decay={config.em.decay}: the result is the average at the last sync, so that "
            f"every round must end with one: set em.refresh_every={every} to a divisor of "
            f"adapt.round_steps={config.adapt.round_steps}, or em.decay to 0"
        )


def _check_batches(config: ConfigDict, mesh: Mesh) -> None:
    pairs = trains_cyclegan(config)
    if pairs and config.pair.batch_size % config.pair.pools:
        raise UserError(
            f"pair.pools={config.pair.pools} does not divide pair.batch_size="
            f"{config.pair.batch_size}: each pool needs the same number of images"
        )
    if config.method != OURS:
        half, odd = divmod(config.adapt.batch_size, 2)
        if odd:
            raise UserError(
                f"adapt.batch_size={config.adapt.batch_size}: half of a batch is of each domain "
                f"with method={config.method}, so it must be even"
            )
        meshes.check_batch_size("half of adapt.batch_size", half, mesh)
    for stage in _BATCHES if pairs else _BATCHES[2:]:
        meshes.check_batch_size(f"{stage}.batch_size", config[stage].batch_size, mesh)


def check_workdir(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Checks that a working directory is writable, without creating it.

    Args:
      path: the working directory.
      inputs: folders of images that are read, which it must not be in.

    Raises:
      UserError: if it is not.
    """
    files.output("--workdir", path, inputs)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:  # checkpoints need paths in UTF-8
        raise UserError(
            f"--workdir={path} is not valid text in the locale: set the environment variable "
            "PYTHONUTF8=1, or give another folder"
        ) from error
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir={path}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={path}: no permission to write to {existing}")


def network_shapes(config: ConfigDict, task: Task) -> dict[str, Variables]:
    """Shapes of the variables of every network of a run, by name.

    Raises:
      UserError: if networks, weights or aligned layers do not fit the images or each other.
    """
    size = task.source_train.images.shape[1]
    if config.method == "upper_bound" and (task.evaluation.target_train.labels < 0).any():
        raise UserError(
            "method=upper_bound trains on target labels, and some target images have none"
        )
    try:
        shapes = _shapes(config, task)
    except ValueError as error:
        raise UserError(f"the networks do not fit images of {size}x{size}: {error}") from error
    classifier = shapes["classifier"]
    if reads_weights(config):
        variables = {n: v for n, v in classifier.items() if n in ("params", "batch_stats")}
        models.pretrained_variables(config.model, variables)
    setting = "adapt.layers"
    try:
        aligned = attention.collect(classifier["intermediates"], config.adapt.layers)
        setting = "adapt.jmmd_layers"
        if config.adapt.measure == "jmmd":
            attention.joint_layers(aligned, config.adapt.jmmd_layers)
    except ValueError as error:
        raise UserError(f"{setting}: {error}") from error
    return shapes


def _shapes(config: ConfigDict, task: Task) -> dict[str, Variables]:
    key, image = jax.random.key(0), jnp.zeros((1, *task.source_train.images.shape[1:]))
    view = augment.evaluation_views(image, config.augment, 1)[0]
    model = models.create_classifier(config.model, len(task.class_names), config.adapt.attention)
    init = functools.partial(model.init, train=False, mutable=True)  # including sown maps
    shapes = {"classifier": jax.eval_shape(init, key, view)}
    if trains_cyclegan(config):
        gan = zip(("generator", "discriminator"), models.create_gan(config.pair), strict=True)
        shapes |= {name: jax.eval_shape(network.init, key, image) for name, network in gan}
    if config.method != OURS:
        create = functools.partial(baseline_training.create_auxiliary, config, model, view)
        auxiliary = jax.eval_shape(create, key)
        shapes |= {f"{name} of {config.method}": {"params": p} for name, p in auxiliary.items()}
    return shapes


def check_updates(
    config: ConfigDict,
    model: nn.Module,
    shape: tuple[int, ...],
    adapt: Callable[[Variables], TargetTraining],
    stages: Collection[str],
) -> None:
    """Checks that an update of each stage that trains a classifier keeps the state's types.

    Computes nothing. The loop checks a stage when it starts, which can be hours after the first.

    Args:
      config: the whole config.
      model: the classifier.
      shape: of an image, `(H, W, 3)`.
      adapt: how the target network is trained, from the source network's variables.
      stages: those to check.

    Raises:
      TypeError: see `loop.check_types`.
    """
    optimizer = optimizers.make(config.source.optimizer, total_steps=1)

    def updates() -> dict[str, tuple[Any, Any]]:
        """By stage, the state before and after an update."""
        image = jnp.zeros((1, *shape), jnp.uint8)
        view = augment.evaluation_views(augment.decode(image), config.augment, 1)[0]
        state = source.create_state(jax.random.key(0), model, optimizer, view)
        batch = source.LabelledBatch(image, jnp.zeros(1, jnp.int32))
        how = {"model": model, "optimizer": optimizer, "augment": config.augment}
        training = adapt(state.variables)
        first, sets = training.create_state(), [image] * len(training.image_sets)
        return {
            "source": (state, source.train_step(state, batch, **how)[0]),
            "adapt": (first, training.train_step(first, gather(sets, training.batch_at(0)))[0]),
        }

    if stages:
        for name, states in jax.eval_shape(updates).items():
            if name in stages:
                loop.check_types(name, *states)
