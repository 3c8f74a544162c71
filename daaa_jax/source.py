"""Stage `source`: the source network, trained on labelled source images, then fixed (3.2)."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic

import jax
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import losses
from daaa_jax.data.augment import decode, evaluation_views, random_view
from daaa_jax.data.batches import ImagesOrRows, IndexStream, Rows
from daaa_jax.data.types import LabelledImages
from daaa_jax.models import Variables, initial_variables, starting_variables
from daaa_jax.training import loop, optimizers
from daaa_jax.training.context import Context
from daaa_jax.training.feed import Feed


class LabelledBatch(struct.PyTreeNode, Generic[ImagesOrRows]):
    """Source images, uint8 `[B,H,W,3]`, or their `Rows` until gathered; labels, int32 `[B]`."""

    images: ImagesOrRows
    labels: Array | np.ndarray


class SourceState(struct.PyTreeNode):
    """The state of stage `source` after `step` updates: variables and optimiser."""

    step: Array
    key: Array
    variables: Variables
    opt_state: optax.OptState


def create_state(
    key: Array,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image: Array,
    begin: Callable[[Array, nn.Module, Array], Variables] = initial_variables,
) -> SourceState:
    """The state before the first update.

    Args:
      optimizer: trains all of its parameters.
      image: float32 `[1,H,W,3]`, for the input's shape alone.
      begin: `(key, model, image) -> variables`, the initial ones.
    """
    init_key, step_key = jax.random.split(key)
    variables = begin(init_key, model, image)
    return SourceState(
        step=jax.numpy.int32(0),
        key=step_key,
        variables=variables,
        opt_state=optimizer.init(variables["params"]),
    )


def train_step(
    state: SourceState,
    batch: LabelledBatch[Array],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    augment: ConfigDict,
) -> tuple[SourceState, loop.Metrics]:
    """One update on the cross-entropy of Eq. 6.

    Args:
      batch: images and their classes.
      optimizer: the same as for `create_state`.
      augment: `config.augment`.
    """
    inputs = random_view(jax.random.fold_in(state.key, state.step), decode(batch.images), augment)

    def objective(params):
        variables = {**state.variables, "params": params}
        logits, updates = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
        each = losses.cross_entropy(logits, batch.labels)
        return each.mean(), (each, logits, updates)

    params = state.variables["params"]
    gradient, (each, logits, statistics) = jax.grad(objective, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    variables = {**state.variables, "params": optax.apply_updates(params, updates), **statistics}
    metrics = {
        "loss": loop.mean(each),
        "accuracy": loop.mean((logits.argmax(axis=-1) == batch.labels).astype("float32")),
        "grad_norm": loop.mean(optax.tree.norm(gradient)),
    }
    return state.replace(step=state.step + 1, variables=variables, opt_state=opt_state), metrics


def run(
    config: ConfigDict,
    model: nn.Module,
    data: LabelledImages,
    evaluate: Callable[[Variables], Mapping[str, float]],
    context: Context,
) -> tuple[Variables, Mapping[str, Any]]:
    """Trains the source network, or resumes it.

    Args:
      config: the whole config; `source`, `augment` and `seed` are read.
      data: the labelled source training images.
      evaluate: gives accuracies, logged every `source.round_epochs` epochs and at the end.

    Returns:
      The variables after the last update, and the loop state.
    """
    settings = config.source
    epoch = math.ceil(len(data.labels) / settings.batch_size)
    steps = settings.epochs * epoch
    optimizer = optimizers.make(settings.optimizer, total_steps=steps)
    stream = IndexStream(len(data.labels), settings.batch_size, settings.seed, "source")
    batch_at = functools.partial(_batch_at, stream, data.labels)
    feed = Feed((data.images,), batch_at, steps, context.mesh, context.settings)

    def end_of_round(step, state, metrics, loop_state):
        # The accuracy on a domain without labels is NaN.
        found = evaluate(state.variables)
        return {name: value for name, value in found.items() if not math.isnan(value)}

    key = loop.stage_key(settings.seed, "source")
    image = evaluation_views(decode(data.images[:1]), config.augment, 1)[0]
    begin = functools.partial(starting_variables, config.model)
    state, loop_state = loop.run(
        "source",
        functools.partial(create_state, key, model, optimizer, image, begin),
        functools.partial(train_step, model=model, optimizer=optimizer, augment=config.augment),
        feed,
        images=settings.batch_size,
        round_steps=settings.round_epochs * epoch,
        end_of_round=end_of_round,
        context=context,
        reduce="source.batch_size or augment.crop, or set model.remat=True",
    )
    return state.variables, loop_state


def _batch_at(stream: IndexStream, labels: np.ndarray, step: int) -> LabelledBatch[Rows]:
    rows = stream.at(step)
    return LabelledBatch(Rows(rows), labels[rows])
