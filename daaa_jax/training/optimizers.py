"""An optax optimiser from a stage's settings."""

import jax
import optax
from ml_collections import ConfigDict

from daaa_jax import schedules
from daaa_jax.errors import check_choice

NAMES = ("adam", "sgd")


def make(
    settings: ConfigDict, *, total_steps: int, restart_every: int | None = None
) -> optax.GradientTransformation:
    """The optimiser of a stage.

    Args:
      settings: `name`, one of `NAMES`, `learning_rate`, `schedule` (see `schedules.make`),
        `decay_fraction` (for the `linear` schedule), `b1` and `b2` (adam), `momentum` and
        `nesterov` (sgd), `weight_decay` (added to the gradient before the momentum, as JAN's
        solver does),
        `classifier_factor` (multiplies the learning rate of parameters under `classifier`, which
        are new in a pretrained network).
      total_steps: number of updates in the stage.
      restart_every: updates between two restarts of the schedule (section 3.3, C); None for none.

    Raises:
      ValueError: if the optimiser's name is unknown.
    """
    learning_rate = schedules.make(
        settings.schedule,
        settings.learning_rate,
        total_steps=total_steps,
        restart_every=restart_every,
        decay_fraction=settings.decay_fraction,
    )
    check_choice("optimizer.name", settings.name, NAMES)
    if settings.name == "adam":
        rule = optax.adam(learning_rate, b1=settings.b1, b2=settings.b2)
    else:
        rule = optax.sgd(learning_rate, momentum=settings.momentum, nesterov=settings.nesterov)
    if settings.weight_decay:
        rule = optax.chain(optax.add_decayed_weights(settings.weight_decay), rule)
    if settings.classifier_factor != 1:
        scaled = optax.masked(optax.scale(settings.classifier_factor), _is_classifier)
        rule = optax.chain(rule, scaled)
    return rule


def _is_classifier(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "classifier", params)
