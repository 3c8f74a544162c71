"""Stage `adapt` of a baseline: classifier, start, data, updates and evaluation are as in ours."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import baselines, models
from daaa_jax.baselines.method import ClassifierOutput, DomainBatch, Inputs, Method, Params
from daaa_jax.data.augment import decode, evaluation_views, random_view, recolour
from daaa_jax.data.batches import IndexStream, Rows
from daaa_jax.data.types import LabelledImages, UnlabelledImages
from daaa_jax.models import Variables
from daaa_jax.training import loop
from daaa_jax.training.optimizers import make as make_optimizer
from daaa_jax.training.rounds import TargetTraining

# Of the classifier, and of the method's auxiliary networks.
Optimizers = tuple[optax.GradientTransformation, optax.GradientTransformation]


class BaselineState(struct.PyTreeNode):
    """The state of stage `adapt` of a baseline.

    Attributes:
      step: updates made.
      key: the root of the stage's randomness.
      target: the classifier's parameters and batch statistics.
      opt_state: their optimiser.
      aux_params: parameters of the method's auxiliary networks.
      aux_opt_state: their optimiser.
    """

    step: Array
    key: Array
    target: Variables
    opt_state: optax.OptState
    aux_params: Params
    aux_opt_state: optax.OptState


def make_optimizers(method: Method, total_steps: int) -> Optimizers:
    """The optimisers of a method, without restarts of the learning rate.

    Auxiliary networks are new, and use the learning rate of the classifier's last layer.
    """
    config = method.config
    settings = config.adapt.optimizer.copy_and_resolve_references()
    aux = config[method.optimizer].optimizer.copy_and_resolve_references()
    aux.learning_rate *= aux.classifier_factor
    aux.classifier_factor = 1.0
    if method.fixes_classifier:
        settings.classifier_factor = 0.0
    make = functools.partial(make_optimizer, total_steps=total_steps)
    return make(settings), make(aux)


def create_auxiliary(config: ConfigDict, model: nn.Module, image: Array, key: Array) -> Params:
    """Parameters of the auxiliary networks of `config.method`, to check that they suit the images.

    Raises:
      ValueError: if they do not suit images of this size.
    """
    given = ClassifierOutput.of(model, models.initial_variables(key, model, image), image)
    return baselines.make(config, model).create(key, image, given)


def create_state(
    key: Array, method: Method, start: Variables, image: Array, optimizers: Optimizers
) -> BaselineState:
    """The state before the first update.

    Args:
      start: the classifier's initial variables.
      image: float32 `[1,H,W,3]`, for its shape alone.
      optimizers: those of `make_optimizers`.
    """
    aux_key, step_key = jax.random.split(key)
    aux_params = method.create(aux_key, image, ClassifierOutput.of(method.model, start, image))
    target = jax.tree.map(jnp.array, start)
    return BaselineState(
        step=jnp.int32(0),
        key=step_key,
        target=target,
        opt_state=optimizers[0].init(target["params"]),
        aux_params=aux_params,
        aux_opt_state=optimizers[1].init(aux_params),
    )


def train_step(
    state: BaselineState,
    batch: DomainBatch[Array],
    *,
    method: Method,
    optimizers: Optimizers,
    total_steps: int,
) -> tuple[BaselineState, loop.Metrics]:
    """One update of the classifier and of the method's auxiliary networks.

    Args:
      batch: uint8 images of both domains.
      optimizers: the same as for `create_state`.
      total_steps: number of updates in the stage.
    """
    inputs = _inputs(state, batch, method, total_steps)
    learns_statistics = method.config.adapt.batch_norm == "batch"

    def loss(params, aux_params):
        variables = {**state.target, "params": params}

        def classify(images: Array, statistics: Mapping[str, Any] | None = None):
            current = variables | dict(statistics or {})
            return ClassifierOutput.of(method.model, current, images, train=learns_statistics)

        total, parts, given = method.loss(aux_params, classify, inputs)
        return total, ({"loss": total, **parts}, given)

    params, aux_params = state.target["params"], state.aux_params
    gradient, (parts, given) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, aux_params)
    updates, opt_state = optimizers[0].update(gradient[0], state.opt_state, params)
    aux_updates, aux_opt_state = optimizers[1].update(gradient[1], state.aux_opt_state, aux_params)
    target = {**state.target, "params": optax.apply_updates(params, updates), **given.statistics}
    metrics = {name: loop.mean(value) for name, value in parts.items()}
    metrics["grad_norm"] = loop.mean(optax.tree.norm(gradient))
    if method.labels:
        labels = getattr(batch, method.labels)
        right = given.logits[: len(labels)].argmax(axis=-1) == labels
        metrics["accuracy"] = loop.mean(right.astype(jnp.float32))
    state = state.replace(
        step=state.step + 1,
        target=target,
        opt_state=opt_state,
        aux_params=optax.apply_updates(aux_params, aux_updates),
        aux_opt_state=aux_opt_state,
    )
    return state, metrics


def _inputs(
    state: BaselineState, batch: DomainBatch[Array], method: Method, total_steps: int
) -> Inputs:
    """Random views of a batch, with the other inputs of a method's loss."""
    config = method.config
    key = jax.random.fold_in(state.key, state.step)
    source = random_view(jax.random.fold_in(key, 0), decode(batch.source), config.augment)
    target = random_view(jax.random.fold_in(key, 1), decode(batch.target), config.augment)
    if config.adapt.recolour and method.recolours:
        target = recolour(jax.random.fold_in(key, 3), target, config.adapt.recolour)
    return Inputs(
        source=source,
        target=target,
        labels=batch.labels,
        target_labels=batch.target_labels,
        progress=state.step.astype(jnp.float32) / total_steps,
        key=jax.random.fold_in(key, 2),
    )


def target_training(
    config: ConfigDict,
    model: nn.Module,
    source: Variables,
    source_train: LabelledImages,
    target_train: UnlabelledImages,
    target_labels: np.ndarray,
) -> TargetTraining:
    """How a baseline trains the classifier; half of a batch is from each domain.

    Args:
      config: the whole config.
      source: the source network's variables, the start unless `adapt.init=scratch`.
      source_train: labelled source images.
      target_train: unlabelled target images.
      target_labels: classes of `target_train`, read by `UpperBound` only.
    """
    settings, method = config.adapt, baselines.make(config, model)
    steps = settings.rounds * settings.round_steps
    optimizers = make_optimizers(method, steps)
    image = evaluation_views(decode(source_train.images[:1]), config.augment, 1)[0]
    init_key, key = jax.random.split(loop.stage_key(config.seed, f"adapt {config.method}"))
    start = source
    if settings.init == "scratch":
        start = models.starting_variables(config.model, init_key, model, image)
    image_sets, half = (source_train.images, target_train.images), settings.batch_size // 2
    streams = [
        IndexStream(len(images), half, config.seed, f"adapt {group}")
        for group, images in zip(("s", "t"), image_sets, strict=True)
    ]
    known = target_labels if method.labels == "target_labels" else np.zeros_like(target_labels)
    return TargetTraining(
        create_state=functools.partial(create_state, key, method, start, image, optimizers),
        train_step=functools.partial(
            train_step, method=method, optimizers=optimizers, total_steps=steps
        ),
        image_sets=image_sets,
        batch_at=functools.partial(_batch_at, streams, source_train.labels, known),
        images=half if method.target_only else 2 * half,
    )


def _batch_at(
    streams: Sequence[IndexStream], labels: np.ndarray, target_labels: np.ndarray, step: int
) -> DomainBatch[Rows]:
    source, target = (stream.at(step) for stream in streams)
    return DomainBatch(Rows(source, 0), Rows(target, 1), labels[source], target_labels[target])
