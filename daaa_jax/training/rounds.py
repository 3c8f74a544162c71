"""What a round of adaptation ends with: the target network is measured, scored, perhaps kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from daaa_jax.data.types import LabelledImages, MeasuredData
from daaa_jax.evaluation import Evaluation, Evaluator, Outputs, model_selection, spread
from daaa_jax.evaluation.second_view import SecondView
from daaa_jax.models import Variables
from daaa_jax.runtime import markers
from daaa_jax.training import loop

POSTERIOR = "posterior.json"
# Logged for a report, and too many for a line.
QUIET = (
    "confidence",
    "rejected_accuracy",
    "calibration_error",
    "used_accuracy",
    "own_accuracy",
    "second_view_accuracy",
    "entropy",
    "neighbourhood_density",
    "deep_embedded",
    "target_test_selected",
    "target_test_oracle",
)


def end(
    step: int,
    target: Variables,
    metrics: loop.Metrics,
    memory: loop.Memory,
    *,
    evaluate: Evaluator,
    measured: MeasuredData,
    settings: ConfigDict,
    keep: Callable[[int, Variables], None],
    folder: Path,
    told: Sequence[str] = ("loss",),
    posterior: Variables | None = None,
    view: SecondView | None = None,
) -> dict[str, float]:
    """Evaluates the target network, and keeps it if it is the best by the chosen validator.

    Args:
      step: updates made.
      target: the target network.
      metrics: of the round.
      memory: of the loop; `last`, `selected` and `oracle` are written, each with its `step`, the
        accuracies and the validator's score there, and `posterior`.
      evaluate: measures a network on some images.
      measured: the images; of the target domain's, none with a label reaches a validator.
      settings: `config.evaluate`; `validator` and `validation_images` are read.
      keep: called with the step and the network where it is the best so far.
      folder: of the stage; `posterior.json`, what `soft_labels` says of each round, lies there.
      told: the metrics that are logged as the round's.
      posterior: the network that the next round's soft labels come from, where it is another one.
      view: reads the translations of the target images, where the method has them.

    Returns:
      What is logged. `kept`, `confidence`, `kept_accuracy`, `rejected_accuracy` and
      `calibration_error` are those of the soft labels, on the unlabelled training images as they
      are. Accuracies that are not known are left out.
    """
    unlabelled = _with_outputs(evaluate, target, measured.target_train, settings)
    own = unlabelled if posterior is None else evaluate(posterior, measured.target_train)
    views = {"used": own}
    if view is not None:
        teacher = target if posterior is None else posterior
        views = view.audit(teacher, own, memory["em"]["gamma"])
    soft = views["used"]
    same = measured.target_test is measured.target_train
    on_target = unlabelled if same else evaluate(target, measured.target_test)
    scores = _scores(unlabelled, target, evaluate, measured, settings)
    score = scores.get(settings.validator)
    last = {
        "step": step,
        measured.source_figure: evaluate(target, measured.source_test).accuracy,
        "target_test": on_target.accuracy,
        settings.validator: score,
    }
    memory["last"] = last
    best = memory.get("selected", {}).get(settings.validator)
    if "selected" not in memory or (score is not None and (best is None or score > best)):
        memory["selected"] = last
        keep(step, target)
    if last["target_test"] > memory.setdefault("oracle", last)["target_test"]:
        memory["oracle"] = last
    said = soft_labels(step, soft) | {"views": {name: _shares(of) for name, of in views.items()}}
    memory["posterior"] = [*memory.get("posterior", []), markers.plain(said)]
    markers.write_json(folder / POSTERIOR, memory["posterior"])
    figures = {f"round_{name}": float(metrics[name].compute()) for name in told}
    figures |= {
        "kept": soft.kept,
        "confidence": soft.confidence,
        "kept_accuracy": soft.kept_accuracy,
        "rejected_accuracy": soft.rejected_accuracy,
        "calibration_error": soft.calibration_error,
        **({} if view is None else {"gamma": memory["em"]["gamma"]}),
        **{f"{name}_accuracy": of.accuracy for name, of in views.items() if len(views) > 1},
        **scores,
        measured.source_figure: last[measured.source_figure],
        "target_test": last["target_test"],
        "target_test_selected": memory["selected"]["target_test"],
        "target_test_oracle": memory["oracle"]["target_test"],
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def soft_labels(step: int, found: Evaluation) -> dict[str, Any]:
    """What is kept of the soft labels of a round, for a report.

    Args:
      step: updates made.
      found: of the network that they come from, on the unlabelled training images.

    Returns:
      `step`; by true class, images that there are (`images`), that are kept (`kept`) and that are
      kept and right (`right`); and `calibration`, see `evaluation.Sums`.
    """
    return {
        "step": step,
        "images": found.confusion.sum(axis=1),
        "kept": found.kept_by_class,
        "right": found.kept_correct,
        "calibration": found.calibration,
    }


def _shares(found: Evaluation) -> dict[str, float]:
    names = ("accuracy", "kept", "kept_accuracy", "calibration_error")
    return {name: getattr(found, name) for name in names}


def _with_outputs(
    evaluate: Evaluator, network: Variables, data: LabelledImages, settings: ConfigDict
) -> Evaluation:
    """With the outputs of as many images as validators see."""
    return evaluate(network, data, spread(len(data.labels), settings.validation_images))


def _scores(
    unlabelled: Evaluation,
    network: Variables,
    evaluate: Evaluator,
    measured: MeasuredData,
    settings: ConfigDict,
) -> Mapping[str, float]:
    """By name, what each validator says that can be asked, where that is a number."""
    held_out = None
    if measured.source_held_out is not None:
        apart, trained = (
            _with_outputs(evaluate, network, data, settings)
            for data in (measured.source_held_out, measured.source_train)
        )
        labels = measured.source_held_out.labels
        shown = labels[spread(len(labels), settings.validation_images)]
        held_out = model_selection.HeldOut(
            _precise(apart.outputs), shown, _precise(trained.outputs).features
        )
    seen = _precise(unlabelled.outputs)
    scores = {
        name: validator(seen, held_out)
        for name, validator in model_selection.VALIDATORS.items()
        if held_out is not None or name not in model_selection.NEED_HELD_OUT
    }
    return {name: score for name, score in scores.items() if math.isfinite(score)}


def _precise(given: Outputs) -> Outputs:
    return Outputs(given.posteriors.astype(np.float64), given.features.astype(np.float64))
