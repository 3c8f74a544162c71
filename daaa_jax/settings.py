"""Settings are checked before anything starts, so that a typing error does not cost a stage."""

import math
import re
from collections.abc import Iterator

from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax import adaptation, baselines
from daaa_jax.errors import UserError
from daaa_jax.evaluation import second_view
from daaa_jax.evaluation.model_selection import NEED_HELD_OUT, VALIDATORS
from daaa_jax.models import CLASSIFIERS
from daaa_jax.runtime import mesh as meshes

_OPTIMIZER = {
    "optimizer.name": ("adam", "sgd"),
    "optimizer.schedule": ("constant", "progress", "iteration", "linear"),
}
_CHOICES = {
    "method": (baselines.OURS, *baselines.METHODS),
    "pair.adversarial": ("lsgan", "vanilla"),
    "adapt.init": ("source", "scratch"),
    "adapt.batch_norm": ("batch", "frozen"),
    "adapt.attention": ("sum_squares", "sum_abs", "max_abs", "features"),
    "adapt.measure": ("l2", "l1", "mmd", "jmmd"),
    "em.normalize": ("batch", "kept"),
    "em.posterior": ("target", "paired"),
    "em.second_view": ("source", "posterior"),
    "evaluate.crops": (1, 10),
    "evaluate.validator": tuple(VALIDATORS),
    "data.on_error": ("raise", "skip"),
    "model.name": tuple(CLASSIFIERS),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.version": ("v1.5", "v1"),
    "model.inputs": ("imagenet", "caffe"),
} | {f"{stage}.{k}": v for stage in ("pair", "source", "adapt") for k, v in _OPTIMIZER.items()}
_POSITIVE = (
    "pair.epochs",
    "pair.pools",
    "pair.filters",
    "pair.discriminator_filters",
    "pair.discriminator_layers",
    "translate.part_size",
    "source.epochs",
    "source.round_epochs",
    "adapt.rounds",
    "adapt.round_steps",
    "em.refresh_every",
    "data.image_size",
    "run.log_every",
    "run.checkpoint_every",
    "evaluate.validation_images",
    "evaluate.audit_images",
    "baselines.jan_a.width",
    "baselines.pixelda.noise",
)
_NOT_NEGATIVE = (
    "seed",
    "pair.seed",
    "source.seed",
    "data.seed",
    "augment.shift",
    "augment.crop",
    "pair.enlarge",
    "run.workers",
    "pair.downsamplings",
    "pair.blocks",
    "pair.cycle_weight",
    "pair.identity_weight",
    "pair.pool_size",
    "adapt.beta",
    "adapt.recolour",
    "adapt.mix.s",
    "adapt.mix.t_f",
    "adapt.mix.t",
    "adapt.mix.s_f",
    "em.threshold",
    "em.start_step",
    "baselines.dann.weight",
    "baselines.jan.weight",
    "baselines.jan_a.weight",
    "baselines.dsn.reconstruction",
    "baselines.dsn.difference",
    "baselines.dsn.similarity",
    "baselines.ada.walker",
    "baselines.ada.visit",
    "baselines.pixelda.task",
)
_LARGEST_SEED = 2**32 - 1  # beyond it JAX takes some for the same, and scikit-learn refuses
_BATCHES = ("pair", "translate", "source", "adapt", "evaluate")


def fit_to_devices(config: ConfigDict, devices: int, begun: ConfigDict | None = None) -> None:
    """Sets what the number of devices decides.

    A CycleGAN batch of 0 is an image on each of them, and 0 pools are one for each image; of those
    that a run has begun with, on however many devices it goes on.

    Args:
      config: the whole config, which is changed.
      devices: how many there are.
      begun: the config of the run that is continued.
    """
    pair = config.pair
    if pair.batch_size == 0:
        pair.batch_size = devices if begun is None else begun.pair.batch_size
    if pair.pools == 0:
        pair.pools = pair.batch_size if begun is None else begun.pair.pools


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Makes sure that the settings are ones that the stages can run with.

    Args:
      config: the whole config.
      mesh: the devices that batches are split over.

    Raises:
      UserError: names the first setting that is not, and what it can be.
    """
    for name, value in _figures(config):
        if not math.isfinite(value):
            raise UserError(f"{name}={value} is no number")
    for name, choices in _CHOICES.items():
        value = _get(config, name)
        if value is not None and value not in choices:
            raise UserError(f"{name}={value} is unknown: choose {', '.join(map(str, choices))}")
    for names, least in ((_POSITIVE, 1), (_NOT_NEGATIVE, 0)):
        for name in names:
            value = _get(config, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value} must be at least {least}")
    for name in ("seed", "pair.seed", "source.seed", "data.seed"):
        if (seed := _get(config, name) or 0) > _LARGEST_SEED:
            raise UserError(f"{name}={seed} is too large: choose at most {_LARGEST_SEED}")
    if not sum(config.adapt.mix.values()):
        raise UserError("adapt.mix: at least one of s, t_f, t and s_f must be more than 0")
    if not 0 <= config.em.threshold <= 2:
        raise UserError(
            f"em.threshold={config.em.threshold} is compared with a probability: choose 0 to 1, "
            "or more than 1 to keep nothing"
        )
    ours = config.method == baselines.OURS
    start, every = config.em.start_step, config.em.refresh_every
    if ours and 0 < start < every:
        raise UserError(
            f"em.start_step={start} lies before the first refresh of the posterior network "
            f"(em.refresh_every={every}), which till then is the unadapted one: set it to {every}, "
            "or to 0 where the target network starts good enough"
        )
    fitted = config.adapt.mix.t or config.adapt.mix.s_f  # whether EM has any part in it
    if ours and fitted and config.adapt.init == "scratch" and start < every:
        raise UserError(
            f"em.start_step={start}: a target network that starts from scratch gives no posteriors "
            f"before the first refresh; set it to {every} (em.refresh_every) or more"
        )
    if ours and config.em.posterior == "paired" and second_view.measured_at(config) is None:
        raise UserError(
            f"em.posterior=paired: em.refresh_every={every} is more than all "
            f"{config.adapt.rounds * config.adapt.round_steps} updates, so the posterior network "
            "never changes and the second view's weight cannot be measured; lower it, or set "
            "em.posterior=target"
        )
    for name in ("em.tolerance", "baselines.ada.temperature"):
        if (value := _get(config, name)) <= 0:
            raise UserError(f"{name}={value} must be more than 0")
    for name in ("model.widths", "baselines.dann.widths", "baselines.dsn.widths"):
        if any(width < 1 for width in _get(config, name) or ()):
            raise UserError(f"{name}={_get(config, name)}: each must be at least 1")
    for stage in ("pair", "source", "adapt"):
        if not 0 <= (value := config[stage].optimizer.decay_fraction) <= 1:
            raise UserError(f"{stage}.optimizer.decay_fraction={value} must be between 0 and 1")
    for name in ("adapt.layers", "adapt.jmmd_layers"):
        try:
            re.compile(_get(config, name))
        except re.error as error:
            value = _get(config, name)
            raise UserError(f"{name}={value} is no regular expression: {error}") from error
    if config.evaluate.validator in NEED_HELD_OUT and not config.data.source_holdout:
        raise UserError(
            f"evaluate.validator={config.evaluate.validator} needs labelled source images that are "
            "not trained on: set data.source_holdout, for instance to 0.1"
        )
    pairs = adaptation.trains_cyclegan(config)
    if pairs and config.pair.batch_size % config.pair.pools:
        raise UserError(
            f"pair.pools={config.pair.pools} does not divide pair.batch_size="
            f"{config.pair.batch_size}: each pool takes the same number of images"
        )
    if not ours:
        half, odd = divmod(config.adapt.batch_size, 2)
        if odd:
            raise UserError(
                f"adapt.batch_size={config.adapt.batch_size}: half of a batch is of each domain "
                f"with method={config.method}, choose an even number"
            )
        meshes.check_batch_size("half of adapt.batch_size", half, mesh)
    for stage in _BATCHES if pairs else _BATCHES[2:]:
        meshes.check_batch_size(f"{stage}.batch_size", config[stage].batch_size, mesh)


def _figures(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every setting that is a float, with its dotted name."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _figures(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield prefix + key, value


def _get(config: ConfigDict, name: str):
    """A setting by its dotted name; None where the config of a task has none of that name."""
    value = config
    for part in name.split("."):
        value = value.get(part) if value is not None else None
    return value
