"""Relative cost of a run's stages, for the time left of the whole run.

Floating-point operations of the networks' forward passes, counted before anything is compiled;
passes over the images for evaluation are left out.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from daaa_jax import models
from daaa_jax.data.augment import evaluation_views
from daaa_jax.data.pairs import GROUPS, group_sizes
from daaa_jax.data.types import Task
from daaa_jax.experiment.stages import OURS, trains_cyclegan
from daaa_jax.models import layers

_TRAINED = 3  # forward passes that a forward and a backward pass cost


def later(config: ConfigDict, task: Task, names: Sequence[str]) -> dict[str, float]:
    """How many of a stage's units the stages after it cost; a unit is an update, or an image.

    Args:
      config: the whole config.
      task: both domains.
      names: of the stages to come, in order.

    Returns:
      By stage; empty where the backend does not count operations, as PJRT plugins do not.
    """
    if not names:
        return {}
    units = _units(config, task)
    if not all(cost for _, cost in units.values()):
        return {}
    costs = {name: count * cost for name, (count, cost) in units.items()}
    return {
        name: sum(costs[other] for other in list(names)[place + 1 :]) / units[name][1]
        for place, name in enumerate(names)
    }


def _units(config: ConfigDict, task: Task) -> dict[str, tuple[int, float]]:
    """Of each stage how many units it has, and the operations of one."""
    image = jnp.zeros((1, *task.source_train.images.shape[1:]))
    view = evaluation_views(image, config.augment, 1)[0]
    classifier = models.create_classifier(config.model, len(task.class_names), "sum_squares")
    generator, discriminator = models.create_gan(config.pair)
    classify = _operations(classifier, view, train=False)
    sizes = len(task.source_train.images), len(task.target_train.images)
    pair, source, adapt = config.pair, config.source, config.adapt
    epoch = -(-max(sizes) // pair.batch_size)
    if config.method == OURS:
        groups = group_sizes(adapt.batch_size, [adapt.mix[group] for group in GROUPS])
        # The target network is trained, the source network sees the whole batch, M^post T alone.
        update = (_TRAINED + 1) * sum(groups) + sum(groups[2:])
    else:
        update = _TRAINED * adapt.batch_size
    translate = discriminate = 1.0
    if trains_cyclegan(config):
        translate = _operations(generator, image)
        discriminate = _operations(discriminator, image)
    # Both translations, both ways back, and with an identity term two more. The discriminators see
    # two translations for the generators' sake, then two real and two past images.
    made = 4 + 2 * bool(pair.identity_weight)
    both = _TRAINED * (made * translate + 6 * discriminate)
    return {
        "pair": (pair.epochs * epoch, pair.batch_size * both),
        "translate": (sum(sizes), translate),
        "source": (
            source.epochs * -(-sizes[0] // source.batch_size),
            _TRAINED * source.batch_size * classify,
        ),
        "adapt": (adapt.rounds * adapt.round_steps, update * classify),
    }


def _operations(network: nn.Module, image: jax.Array, **options) -> float:
    """Of a forward pass on one image."""

    shapes = jax.eval_shape(lambda key: network.init(key, image, **options), jax.random.key(0))
    apply = jax.jit(lambda variables, image: network.apply(variables, image, **options))
    with layers.plain_convolutions():
        found = apply.lower(shapes, image).cost_analysis()
    return (found or {}).get("flops", 0.0)
