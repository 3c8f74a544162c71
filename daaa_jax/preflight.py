"""Checks before training that an update keeps the types of each stage's state; computes nothing.

The loop checks a stage when it starts, which for the last one can be hours after the first.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import source
from daaa_jax.data.augment import decode, evaluation_views
from daaa_jax.data.batches import gather
from daaa_jax.models import Variables
from daaa_jax.training import loop, optimizers
from daaa_jax.training.rounds import TargetTraining


def check_updates(
    config: ConfigDict,
    model: nn.Module,
    shape: tuple[int, ...],
    adapt: Callable[[Variables], TargetTraining],
    stages: Collection[str],
) -> None:
    """Checks one update of each stage that trains a classifier.

    Args:
      config: the whole config.
      model: the classifier.
      shape: of an image, `(H, W, 3)`.
      adapt: how the target network is trained, from the source network's variables.
      stages: those to check.

    Raises:
      TypeError: see `loop.check_types`.
    """
    augment = config.augment
    optimizer = optimizers.make(config.source.optimizer, total_steps=1)

    def images(count: int) -> Array:
        return jnp.zeros((count, *shape), jnp.uint8)

    def source_state() -> source.SourceState:
        view = evaluation_views(decode(images(1)), augment, 1)[0]
        return source.create_state(jax.random.key(0), model, optimizer, view)

    def of_source() -> tuple[Any, Any]:
        state, batch = source_state(), source.LabelledBatch(images(1), jnp.zeros(1, jnp.int32))
        how = {"model": model, "optimizer": optimizer, "augment": augment}
        return state, source.train_step(state, batch, **how)[0]

    def of_adapt() -> tuple[Any, Any]:
        training = adapt(source_state().variables)
        state, sets = training.create_state(), [images(1)] * len(training.image_sets)
        batch = gather(sets, training.batch_at(0))
        return state, training.train_step(state, batch)[0]

    for name, update in (("source", of_source), ("adapt", of_adapt)):
        if name in stages:
            loop.check_types(name, *jax.eval_shape(update))
