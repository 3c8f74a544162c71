"""Stage `adapt` of any method: rounds of updates, each followed by evaluation and selection."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from daaa_jax.data.types import ImageArray, LabelledImages, MeasuredData
from daaa_jax.evaluation import Evaluation, Evaluator, model_selection, spread
from daaa_jax.evaluation.class_balance import lost_classes
from daaa_jax.evaluation.second_view import SecondView, measure_once
from daaa_jax.models import Variables
from daaa_jax.runtime import files
from daaa_jax.runtime import mesh as meshes
from daaa_jax.training import loop
from daaa_jax.training.context import Context
from daaa_jax.training.feed import Feed

# Written for the report, but too many for the log line of a round; the validator in use is shown.
_QUIET = (
    "confidence",
    "rejected_accuracy",
    "calibration_error",
    "used_accuracy",
    "own_accuracy",
    "second_view_accuracy",
    *model_selection.VALIDATORS,
    "target_test_selected",
    "target_test_oracle",
)
# Metrics of the soft labels: of those in use at each round, and of each view of them.
_LOGGED = ("kept", "confidence", "kept_accuracy", "rejected_accuracy", "calibration_error")
_OF_ROUNDS = ("loss", "alignment")  # averages over the updates of a round
# At most, unless the validators use more, target training images whose soft labels each round
# evaluates; if accuracy is measured on these images, all.
_AUDITED = 10_000
_OF_VIEWS = ("accuracy", "kept", "kept_accuracy", "calibration_error")


@dataclasses.dataclass(frozen=True)
class TargetTraining:
    """How a method trains the target network.

    Attributes:
      create_state: makes the state before the first update.
      train_step: `(state, batch) -> (state, metrics)`, one update.
      image_sets: sets of training images, see `Feed`.
      batch_at: the batch of a step, counted from 0, with `Rows` of the images.
      images: number of images that an update classifies.
      network: of a state at the end of a round, the network that is evaluated, and the result after
        the last one; by default its `target`.
      posterior: of a state at the end of a round, the network that gives the next round's soft
        labels; by default its `target`.
      second_view: `(originals, audited, evaluate) -> SecondView`, for a method that reads the
        translations of target images and whose state has `gamma`; else None.
    """

    create_state: Callable[[], Any]
    train_step: Callable[[Any, Any], tuple[Any, loop.Metrics]]
    image_sets: Sequence[ImageArray]
    batch_at: Callable[[int], Any]
    images: int
    network: Callable[[Any], Variables] = lambda state: state.target
    posterior: Callable[[Any], Variables] = lambda state: state.target
    second_view: Callable[..., SecondView] | None = None


def run(
    training: TargetTraining,
    config: ConfigDict,
    evaluate: Evaluator,
    measured: MeasuredData,
    context: Context,
    keep: Callable[[int, Variables], None] = lambda *_: None,
    class_names: Sequence[str] = (),
) -> tuple[Variables, Mapping[str, Any]]:
    """Trains the target network, or resumes it.

    Args:
      training: how the method trains the network.
      config: the whole config; `adapt`, `evaluate` and `em.threshold` are read.
      evaluate: measures a network on some images.
      measured: the images that the rounds are evaluated on; its target labels are used neither in
        training nor to select a checkpoint.
      keep: called with the step and the network of `training` when the label-free validator scores
        it highest so far. A resumed run may repeat a call.
      class_names: for the log, which is silent on lost classes without them.

    Returns:
      The network of `training` after the last update, and the loop state: `last`, `selected` and
      `oracle`, each with its `step` and the accuracies there.
    """
    settings = config.adapt
    steps = settings.rounds * settings.round_steps
    feed = Feed(training.image_sets, training.batch_at, steps, context.mesh, context.settings)
    view, originals = None, measured.target_train
    same = measured.target_test is originals
    audited = max(_AUDITED, config.evaluate.validation_images)
    rows = spread(len(originals.labels), len(originals.labels) if same else audited)
    if training.second_view is not None:
        view = training.second_view(originals=originals, audited=rows, evaluate=evaluate)
    if len(rows) < len(originals.labels):
        measured = dataclasses.replace(measured, target_train=originals.subset(rows))
    path = context.workdir.posterior_json
    end = RoundEnd(evaluate, measured, config, keep, path, training, view, class_names)

    def measure_second_view(step, state, loop_state):
        gamma = view and measure_once(view, step, training.posterior(state), loop_state)
        if gamma is None:
            return state
        return state.replace(gamma=meshes.replicate(np.float32(gamma), context.mesh))

    state, loop_state = loop.run(
        "adapt",
        training.create_state,
        training.train_step,
        feed,
        images=training.images,
        round_steps=settings.round_steps,
        between_rounds=measure_second_view,
        end_of_round=end,
        context=context,
        reduce="adapt.batch_size or augment.crop, or set model.remat=True",
        quiet=[name for name in _QUIET if name != config.evaluate.validator],
    )
    return training.network(state), loop_state


@dataclasses.dataclass(frozen=True)
class RoundEnd:
    """Evaluates the network of a round's end, and keeps it if the validator prefers it.

    Attributes:
      evaluate: measures a network on some images.
      measured: the images; validators get no label of the target domain.
      config: the whole config; `evaluate` and `em.threshold` are read.
      keep: called with the step and the network if it is the best so far.
      posterior_json: where `soft_labels` of every round is written.
      training: how the method trains the network.
      view: reads the translations of the target images, if the method uses them.
      class_names: for the log.
    """

    evaluate: Evaluator
    measured: MeasuredData
    config: ConfigDict
    keep: Callable[[int, Variables], None]
    posterior_json: Path
    training: TargetTraining
    view: SecondView | None = None
    class_names: Sequence[str] = ()

    def __call__(
        self, step: int, state: Any, metrics: loop.Metrics, loop_state: loop.LoopState
    ) -> dict[str, float]:
        """Evaluates the round and returns the metrics to log; unknown accuracies are left out.

        `kept`, `confidence`, `kept_accuracy`, `rejected_accuracy` and `calibration_error` are those
        of the soft labels, on unlabelled training images without augmentation.

        Args:
          step: updates made.
          state: after them.
          metrics: of the round.
          loop_state: receives `posterior`, and `last`, `selected` and `oracle`, each with its
            `step`, the accuracies and the validator's score there.
        """
        network, measured = self.training.network(state), self.measured
        unlabelled = self._with_outputs(network, measured.target_train)
        views = self._soft_label_views(state, network, unlabelled, loop_state)
        used = views["used"]
        same = measured.target_test is measured.target_train
        on_target = unlabelled if same else self.evaluate(network, measured.target_test)
        scores = self._scores(unlabelled, network)
        on_source = self.evaluate(network, measured.source_test)
        last = {
            "step": step,
            measured.source_metric: on_source.accuracy,
            "target_test": on_target.accuracy,
            self.config.evaluate.validator: scores.get(self.config.evaluate.validator),
        }
        self._select(step, network, last, loop_state)
        if self.class_names:
            posteriors = np.exp(used.log_posteriors)
            for line in lost_classes(posteriors, self.config.em.threshold, self.class_names):
                print(f"adapt: {line}", flush=True)
        entry = files.plain(soft_labels(step, views))
        loop_state["posterior"] = [*loop_state.get("posterior", []), entry]
        files.write_json(self.posterior_json, loop_state["posterior"])
        logged = {
            **{f"round_{n}": float(metrics[n].compute()) for n in _OF_ROUNDS if n in metrics},
            **_metrics(used, _LOGGED),
            **({} if self.view is None else {"gamma": loop_state["em"]["gamma"]}),
            **{f"{name}_accuracy": of.accuracy for name, of in views.items() if len(views) > 1},
            **scores,
            measured.source_metric: on_source.accuracy,
            "target_test": on_target.accuracy,
            "target_test_selected": loop_state["selected"]["target_test"],
            "target_test_oracle": loop_state["oracle"]["target_test"],
        }
        return {name: value for name, value in logged.items() if not math.isnan(value)}

    def _soft_label_views(
        self, state: Any, network: Variables, unlabelled: Evaluation, loop_state: loop.LoopState
    ) -> Mapping[str, Evaluation]:
        """Evaluates the next round's soft labels: `used`, and each view if there are two."""
        posterior = self.training.posterior(state)
        own = unlabelled
        if posterior is not network:
            own = self.evaluate(posterior, self.measured.target_train)
        if self.view is None:
            return {"used": own}
        return self.view.audit(posterior, own, loop_state["em"]["gamma"])

    def _select(
        self, step: int, network: Variables, last: Mapping, loop_state: loop.LoopState
    ) -> None:
        """Label-free selection: `selected` is the round that the validator scores highest."""
        loop_state["last"] = last
        score = last[self.config.evaluate.validator]
        best = loop_state.get("selected", {}).get(self.config.evaluate.validator)
        if "selected" not in loop_state or (score is not None and (best is None or score > best)):
            loop_state["selected"] = last
            self.keep(step, network)
        if last["target_test"] > loop_state.setdefault("oracle", last)["target_test"]:
            loop_state["oracle"] = last

    def _with_outputs(self, network: Variables, data: LabelledImages) -> Evaluation:
        """Evaluates a network, with the outputs of the images that validators use."""
        rows = spread(len(data.labels), self.config.evaluate.validation_images)
        return self.evaluate(network, data, rows)

    def _scores(self, unlabelled: Evaluation, network: Variables) -> Mapping[str, float]:
        """Validator → score, for those that apply and whose score is finite."""
        held_out, measured = None, self.measured
        if measured.source_held_out is not None and measured.source_train is not None:
            apart = self._with_outputs(network, measured.source_held_out).outputs
            trained = self._with_outputs(network, measured.source_train).outputs
            labels = measured.source_held_out.labels
            shown = labels[spread(len(labels), self.config.evaluate.validation_images)]
            held_out = model_selection.HeldOut(apart, shown, trained.features)
        scores = {
            name: validator(unlabelled.outputs, held_out)
            for name, validator in model_selection.VALIDATORS.items()
            if held_out is not None or name not in model_selection.NEED_HELD_OUT
        }
        return {name: score for name, score in scores.items() if math.isfinite(score)}


def soft_labels(step: int, views: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Statistics of a round's soft labels, for the report.

    Args:
      step: updates made.
      views: evaluations on the unlabelled training images, of the soft labels in use (`used`) and
        of each view of them.

    Returns:
      `step`; of the soft labels in use, by true class, the number of images (`images`), of kept
      images (`kept`) and of kept images that are classified correctly (`right`); and `calibration`,
      see `Evaluation`; the metrics of each of `views`.
    """
    used = views["used"]
    return {
        "step": step,
        "images": used.confusion.sum(axis=1),
        "kept": used.kept_by_class,
        "right": used.kept_correct,
        "calibration": used.calibration,
        "views": {name: _metrics(of, _OF_VIEWS) for name, of in views.items()},
    }


def _metrics(found: Evaluation, names: Sequence[str]) -> dict[str, float]:
    return {name: getattr(found, name) for name in names}
