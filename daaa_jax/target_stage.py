"""Stage `adapt` around any method: batches, rounds and their ends, for one seed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from daaa_jax.data.images import Images
from daaa_jax.data.types import MeasuredData
from daaa_jax.evaluation import Evaluator
from daaa_jax.evaluation.second_view import SecondView, measure_once
from daaa_jax.models import Variables
from daaa_jax.training import loop, rounds
from daaa_jax.training.context import Context
from daaa_jax.training.feed import Batch, Feed

NAME = "adapt"
REDUCE = "adapt.batch_size or augment.crop, or set model.remat=True"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a method trains the target network with one seed.

    Attributes:
      create_state: makes the state before the first update; the target network is its `target`.
      step: `(state, *images, *batch) -> (state, metrics)`, one update.
      images: sets of training images.
      batch_at: the batch of a step, counted from 0, with rows of the images, see `Feed`.
      fill: the same with images in place of their rows, see `Feed`.
      told: the metrics that are logged as the round's.
      posterior: of a state at the end of a round, the network that the next round's soft labels
        come from where it is not the target network; else None.
      second_view: makes, of `originals` and `evaluate`, what reads the translations of the target
        images; None for a method that has none. The state then has `gamma`.
    """

    create_state: Callable[[], Any]
    step: Callable[..., tuple[Any, loop.Metrics]]
    images: Sequence[np.ndarray | Images]
    batch_at: Callable[[int], Batch]
    fill: Callable[[Sequence[Images], Batch], Batch]
    told: Sequence[str] = ("loss",)
    posterior: Callable[[Any], Variables | None] = lambda state: None
    second_view: Callable[..., SecondView] | None = None

    def view_reader(self, evaluate: Evaluator, measured: MeasuredData) -> SecondView | None:
        """What reads the translations of the measured target images."""
        if self.second_view is None:
            return None
        return self.second_view(originals=measured.target_train, evaluate=evaluate)

    def teacher(self, state: Any) -> Variables:
        """M^post: the network that the next round's soft labels come from."""
        other = self.posterior(state)
        return state.target if other is None else other


def run(
    plan: Plan,
    config: ConfigDict,
    evaluate: Evaluator,
    measured: MeasuredData,
    context: Context,
    keep: Callable[[int, Variables], None] = lambda *_: None,
) -> tuple[Variables, Mapping[str, Any]]:
    """Trains the target network, or goes on with it.

    Args:
      plan: of the method.
      config: the whole config.
      evaluate: measures a network on some images.
      measured: the images that the rounds are evaluated on; nothing of it reaches the training, and
        only its unlabelled part chooses the selected checkpoint.
      context: the surroundings of the run.
      keep: called with the step and the target network whenever it is the best by the label-free
        validator. A run that was killed may call it again.

    Returns:
      The target network's variables after the last update, and the loop's memory: `last`,
      `selected` and `oracle`, each with its `step` and the accuracies there.
    """
    steps = config.adapt.rounds * config.adapt.round_steps
    feed = Feed(
        plan.images,
        plan.batch_at,
        plan.fill,
        steps=steps,
        mesh=context.mesh,
        settings=context.settings,
    )

    view = plan.view_reader(evaluate, measured)

    def between_rounds(step, state, memory):
        if view is None:
            return state
        gamma = measure_once(view, step, plan.teacher(state), memory)
        return state if gamma is None else state.replace(gamma=np.float32(gamma))

    def end_of_round(step, state, metrics, memory):
        return rounds.end(
            step,
            state.target,
            metrics,
            memory,
            evaluate=evaluate,
            measured=measured,
            settings=config.evaluate,
            keep=keep,
            folder=context.workdir / NAME,
            told=plan.told,
            posterior=plan.posterior(state),
            view=view,
        )

    state, memory = loop.run(
        NAME,
        plan.create_state,
        plan.step,
        feed.at,
        steps=steps,
        round_steps=config.adapt.round_steps,
        between_rounds=between_rounds,
        end_of_round=end_of_round,
        context=context,
        reduce=REDUCE,
        quiet=rounds.QUIET,
    )
    return state.target, memory
