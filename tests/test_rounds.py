"""The end of a round: what is measured, what selects, and what never reads a label."""

import functools
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, make_config, make_labelled

from daaa_jax.data.types import LabelledImages, MeasuredData
from daaa_jax.evaluation import Outputs, model_selection
from daaa_jax.training import loop, rounds


def images_of(count, first):
    """Labelled images that `Recorded` identifies by their first pixel."""
    labelled = make_labelled(count, seed=first)
    labelled.images[:, 0, 0, 0] = first
    return labelled


SETS = {"source_test": 1, "target_test": 2, "target_train": 3}
SETS |= {"source_held_out": 4, "source_train": 5}


def measured(*names, count=6):
    return MeasuredData(**{name: images_of(count, SETS[name]) for name in names})


THREE = ("source_test", "target_test", "target_train")


class Recorded:
    """An evaluator with given accuracies and outputs, which records what it is called with."""

    def __init__(self, accuracy, outputs):
        self.accuracy, self.outputs, self.asked = accuracy, outputs, []

    def __call__(self, network, data, rows=()):
        which = {number: name for name, number in SETS.items()}[int(data.images[0, 0, 0, 0])]
        self.asked.append((network, which, list(rows)))
        return types.SimpleNamespace(
            accuracy=self.accuracy if which == "target_test" else 0.99,
            kept=0.4 if network == "posterior" else 0.2,
            confidence=0.8,
            kept_accuracy=0.7,
            rejected_accuracy=0.3,
            calibration_error=0.1,
            confusion=2 * np.eye(CLASSES, dtype=int),
            kept_by_class=np.ones(CLASSES),
            kept_correct=np.zeros(CLASSES),
            calibration=np.zeros((10, 3)),
            outputs=self.outputs if len(rows) else None,
        )


def confident(rows):
    """Posteriors that are certain, of the classes given."""
    posteriors = np.eye(CLASSES)[list(rows)]
    return Outputs(posteriors, posteriors)


@pytest.fixture
def end(tmp_path):
    return functools.partial(end_round, tmp_path)


def end_round(folder, evaluate, loop_state, step=10, data=None, posterior=None, **changes):
    kept = []
    metrics = {name: loop.mean(jnp.full(4, 0.25)) for name in ("loss", "alignment")}
    training = rounds.TargetTraining(
        create_state=None,
        train_step=None,
        image_sets=(),
        batch_at=None,
        images=8,
        posterior=lambda state: posterior or state.target,
    )
    config = make_config({f"evaluate.{k}": v for k, v in changes.items()})
    finish = rounds.RoundEnd(
        evaluate,
        data or measured(*THREE),
        config,
        lambda *arguments: kept.append(arguments),
        folder / "posterior.json",
        training,
    )
    logged = finish(step, types.SimpleNamespace(target=f"target {step}"), metrics, loop_state)
    return logged, kept


def test_last_selected_and_oracle_are_kept_apart(end):
    """`selected` follows the validator without labels, `oracle` the target labels."""
    loop_state, lines, saved = {}, [], []
    # The mutual information of image and class: log 1, log 4 and log 2.
    predicted = [(0,) * 4, (0, 1, 2, 3), (0, 0, 1, 1)]
    for step, accuracy, classes in zip((10, 20, 30), (0.5, 0.4, 0.9), predicted, strict=True):
        logged, kept = end(Recorded(accuracy, confident(classes)), loop_state, step)
        lines.append(logged)
        saved += kept
    assert [loop_state[name]["step"] for name in ("last", "selected", "oracle")] == [30, 20, 30]
    assert [loop_state[n]["target_test"] for n in ("last", "selected", "oracle")] == [0.9, 0.4, 0.9]
    assert saved == [(10, "target 10"), (20, "target 20")]
    names = {"kept", "confidence", "round_loss", "round_alignment", "kept_accuracy", "source_test"}
    names |= {"rejected_accuracy", "calibration_error"}
    names |= {"target_test", "target_test_selected", "target_test_oracle"}
    assert lines[-1].keys() == names | model_selection.VALIDATORS.keys() - {"deep_embedded"}
    assert lines[-1]["target_test_selected"] == 0.4 and lines[1]["target_test_oracle"] == 0.5
    assert lines[1]["information"] == pytest.approx(np.log(4))


def test_the_chosen_validator_chooses(end):
    loop_state = {}
    for step, classes in ((10, (0, 0, 1, 1)), (20, (0,) * 4)):
        # All alike: dense neighbourhoods, and no information.
        end(Recorded(0.5, confident(classes)), loop_state, step, validator="neighbourhood_density")
    assert loop_state["selected"]["step"] == 20
    json.dumps(loop_state)  # it is saved with the state
    assert loop_state["selected"]["neighbourhood_density"] == pytest.approx(np.log(3))


def test_score_that_is_not_finite_never_beats_a_finite_one(end, monkeypatch):
    loop_state, scores = {}, iter([float("nan"), 1.0, float("inf"), 0.5, 2.0])
    monkeypatch.setitem(model_selection.VALIDATORS, "information", lambda *_: next(scores))
    chosen = []
    for step in range(1, 6):
        logged, _ = end(Recorded(0.5, confident((0, 1))), loop_state, step)
        chosen.append(loop_state["selected"]["step"])
        assert logged.get("information") in (None, 1.0, 0.5, 2.0)
    assert chosen == [1, 2, 2, 2, 5]


def test_metrics_of_soft_labels_are_of_the_network_that_gives_them(end):
    own, _ = end(Recorded(0.5, confident((0, 1))), {})
    frozen, _ = end(Recorded(0.5, confident((0, 1))), {}, posterior="posterior")
    assert own["kept"] == 0.2 and frozen["kept"] == 0.4


def test_validators_see_images_spread_over_the_whole_domain(end):
    evaluate = Recorded(0.5, confident((0, 1)))
    end(evaluate, {}, validation_images=3)
    rows = {which: rows for _, which, rows in evaluate.asked}
    assert rows == {"target_train": [0, 2, 4], "source_test": [], "target_test": []}


def test_held_out_source_images_enable_deep_embedded_validation(end):
    generator = np.random.default_rng(0)
    outputs = Outputs(generator.dirichlet(np.ones(CLASSES), 6), generator.normal(size=(6, 3)))
    evaluate, data = Recorded(0.5, outputs), measured(*SETS)
    loop_state = {}
    logged, _ = end(evaluate, loop_state, data=data, validator="deep_embedded")
    held_out = model_selection.HeldOut(outputs, data.source_held_out.labels, outputs.features)
    expected = model_selection.deep_embedded(outputs, held_out)
    assert logged["deep_embedded"] == loop_state["selected"]["deep_embedded"] == expected
    asked = [which for _, which, rows in evaluate.asked if rows]
    assert asked == ["target_train", "source_held_out", "source_train"]


def test_a_target_without_labels_has_no_accuracy(end):
    loop_state = {}
    logged, _ = end(Recorded(float("nan"), confident((0, 1))), loop_state)
    assert "target_test" not in logged and "information" in logged
    assert loop_state["selected"]["step"] == 10


def test_labels_of_the_target_reach_no_validator(end):
    data = measured(*THREE)
    others = LabelledImages(data.target_train.images, (data.target_train.labels + 1) % CLASSES)
    logged = [
        end(Recorded(0.5, confident((0, 1, 1))), {}, data=one)[0]
        for one in (data, MeasuredData(data.source_test, data.target_test, others))
    ]
    assert logged[0] == logged[1]


def test_soft_labels_of_every_round_are_written_for_a_report(end, tmp_path):
    loop_state = {}
    for step in (10, 20):
        end(Recorded(0.5, confident((0, 1))), loop_state, step)
    written = json.loads((tmp_path / "posterior.json").read_text())
    assert written == loop_state["posterior"] and [line["step"] for line in written] == [10, 20]
    assert written[0]["images"] == [2] * CLASSES and written[0]["kept"] == [1] * CLASSES
    # A run that resumes from its last checkpoint writes the rounds after it again.
    loop_state["posterior"].pop()
    end(Recorded(0.5, confident((0, 1))), loop_state, 20)
    assert json.loads((tmp_path / "posterior.json").read_text()) == written
