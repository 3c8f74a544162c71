"""Relative cost of a run's stages, from which the time left of the whole run is estimated.

The cost is the number of floating-point operations of the networks' forward passes, counted before
anything is compiled; evaluation is left out.
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

_TRAINED = 3  # cost of a forward and a backward pass, in forward passes


def later(config: ConfigDict, task: Task, names: Sequence[str]) -> dict[str, float]:
    """Cost of the stages after each stage, in units of that stage: updates, or images.

    Args:
      config: the whole config.
      task: both domains.
      names: of the stages to come, in order.

    Returns:
      Stage → cost; empty if the backend does not count operations, as with PJRT plugins.
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
    """Stage → number of units, and operations of one unit."""
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
        # The target network is trained; the source network reads the whole batch, M^post the last
        # two groups.
        reads = 2 if config.em.second_view == "posterior" and config.em.posterior == "paired" else 1
        update = (_TRAINED + 1) * sum(groups) + reads * sum(groups[2:])
    else:
        update = _TRAINED * adapt.batch_size
    translate = discriminate = 1.0
    if trains_cyclegan(config):
        translate = _operations(generator, image)
        discriminate = _operations(discriminator, image)
    # Two translations, two reconstructions, and with an identity term two more. The discriminators
    # read two translations for the generators' loss, then two real and two replayed images.
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
    """Floating-point operations of a forward pass on one image."""

    shapes = jax.eval_shape(lambda key: network.init(key, image, **options), jax.random.key(0))
    apply = jax.jit(lambda variables, image: network.apply(variables, image, **options))
    with layers.plain_convolutions():
        found = apply.lower(shapes, image).cost_analysis()
    return (found or {}).get("flops", 0.0)
