"""Metrics are those of a plain NumPy twin, whatever the batch size and number of devices."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import CLASSES, make_config

from daaa_jax import evaluation
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import Diverged
from daaa_jax.runtime.mesh import data_mesh

SHARPNESS = 6.0


class FirstRow:
    """A classifier whose logits stand in the image's first pixels, its features beside them."""

    def apply(self, variables, images, train, mutable):
        assert train is False and mutable == ["features"]
        logits = variables["sharpness"] * images[:, 0, :CLASSES, 0]
        return logits, {"features": {"seen": images[:, 0, :CLASSES, 1]}}


def make_data(count=37, seed=0):
    draws = np.random.default_rng(seed)
    images = draws.integers(0, 256, (count, CLASSES, CLASSES, 3), np.uint8)
    return LabelledImages(images, draws.integers(0, CLASSES, count).astype(np.int32))


def measure(
    data, *, devices=1, batch_size=16, threshold=0.9, sharpness=SHARPNESS, changes=None, rows=()
):
    settings = {"evaluate.batch_size": batch_size, "em.threshold": threshold}
    config = make_config(settings | (changes or {}))
    mesh = data_mesh(jax.devices()[:devices])
    evaluate = evaluation.make_evaluator(FirstRow(), mesh, config)
    return evaluate({"sharpness": sharpness}, data, rows)


def posterior_twin(data, sharpness=SHARPNESS):
    logits = sharpness * (data.images[:, 0, :, 0].astype(np.float64) / 127.5 - 1)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 16), (1, 37), (1, 64), (8, 16)])
def test_metrics_are_those_of_the_twin_and_padding_adds_nothing(devices, batch_size):
    data, threshold = make_data(), 0.9
    found = measure(data, devices=devices, batch_size=batch_size, threshold=threshold)

    posterior = posterior_twin(data)
    guesses = posterior.argmax(1)
    confusion = np.zeros((CLASSES, CLASSES), int)
    for true, guess in zip(data.labels, guesses, strict=True):
        confusion[true, guess] += 1
    np.testing.assert_array_equal(found.confusion, confusion)

    right = guesses == data.labels
    np.testing.assert_allclose(found.accuracy, right.mean())
    by_class = [right[data.labels == label].mean() for label in range(CLASSES)]
    np.testing.assert_allclose(found.per_class, by_class)

    kept = posterior.max(1) >= threshold
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_allclose(found.kept, kept.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.kept_accuracy, right[kept].mean(), rtol=1e-6)
    confidence = posterior.max(1)
    np.testing.assert_allclose(found.confidence, confidence.mean(), rtol=1e-5)

    np.testing.assert_allclose(found.rejected_accuracy, right[~kept].mean(), rtol=1e-6)
    for label in range(CLASSES):
        own = data.labels == label
        assert found.kept_by_class[label] == (own & kept).sum()
        assert found.kept_correct[label] == (own & kept & right).sum()
    tenth = np.minimum((10 * confidence).astype(int), 9)
    errors = []
    for number in range(10):
        inside = tenth == number
        sums = (inside.sum(), confidence[inside].sum(), right[inside].sum())
        np.testing.assert_allclose(found.calibration[number], sums, rtol=1e-5)
        errors.append(abs(confidence[inside].sum() - right[inside].sum()))
    np.testing.assert_allclose(found.calibration_error, sum(errors) / len(right), rtol=1e-5)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 16), (1, 64), (8, 16)])
@pytest.mark.parametrize("rows", [[0], [3, 15, 16, 36], range(37)])
def test_outputs_are_those_of_the_rows_asked_for_in_their_order(devices, batch_size, rows):
    data = make_data()
    found = measure(data, devices=devices, batch_size=batch_size, rows=rows).outputs
    rows = list(rows)
    np.testing.assert_allclose(found.posteriors, posterior_twin(data)[rows], rtol=1e-5)
    features = data.images[rows, 0, :, 1] / 127.5 - 1
    np.testing.assert_allclose(found.features, features, rtol=1e-5, atol=1e-6)
    assert len(measure(data).outputs.posteriors) == 0


def test_labels_do_not_touch_what_is_kept():
    data = make_data()
    others = dataclasses.replace(data, labels=(data.labels + 1) % CLASSES)
    found, other = measure(data), measure(others)
    assert found.accuracy != other.accuracy
    for name in ("confidence", "kept"):
        assert getattr(found, name) == getattr(other, name), name


def test_threshold_zero_keeps_all_and_where_none_is_kept_there_is_no_accuracy():
    everything = measure(make_data(), threshold=0.0)
    assert everything.kept == 1
    np.testing.assert_allclose(everything.kept_accuracy, everything.accuracy, rtol=1e-6)
    nothing = measure(make_data(), threshold=1.1)
    assert nothing.kept == 0 and np.isnan(nothing.kept_accuracy)


def test_class_without_images_has_no_accuracy():
    data = make_data()
    few = LabelledImages(data.images[:8], np.array([0, 0, 1, 1, 3, 3, 3, 3], np.int32))
    np.testing.assert_array_equal(np.isnan(measure(few).per_class), [False, False, True, False])


def test_images_whose_class_is_not_known_count_for_everything_but_accuracy():
    data = make_data()
    unknown = np.where(np.arange(37) % 2, data.labels, -1).astype(np.int32)
    found, some = measure(data), measure(LabelledImages(data.images, unknown))
    none = measure(LabelledImages(data.images, np.full(37, -1, np.int32)))
    half = LabelledImages(data.images[1::2], data.labels[1::2])
    assert some.accuracy == measure(half).accuracy
    for one in (some, none):
        assert (one.confidence, one.kept) == (found.confidence, found.kept)
    assert np.isnan([none.accuracy, none.kept_accuracy, none.calibration_error]).all()
    # Unknown ones are not counted as wrong.
    assert some.kept_accuracy == measure(half).kept_accuracy
    np.testing.assert_allclose(some.calibration_error, measure(half).calibration_error, rtol=1e-5)


def test_ten_crops_are_averaged():
    """Images of one colour around a darker edge: the centre alone does not see the edge."""
    data = make_data()
    framed = np.zeros((37, CLASSES + 2, CLASSES + 2, 3), np.uint8)
    framed[:, 1:-1, 1:-1] = data.images
    framed = LabelledImages(framed, data.labels)
    centre = measure(framed, changes={"augment.crop": CLASSES})
    np.testing.assert_array_equal(centre.confusion, measure(data).confusion)

    starts = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    crops = [framed.images[:, y : y + CLASSES, x : x + CLASSES] for y, x in starts]
    crops += [crop[:, :, ::-1] for crop in crops]
    posterior = np.mean([posterior_twin(LabelledImages(crop, None)) for crop in crops], axis=0)
    ten = measure(framed, changes={"augment.crop": CLASSES, "evaluate.crops": 10}, rows=range(37))
    np.testing.assert_allclose(ten.outputs.posteriors, posterior, rtol=1e-4, atol=1e-7)
    features = np.mean([crop[:, 0, :, 1] / 127.5 - 1 for crop in crops], axis=0)
    np.testing.assert_allclose(ten.outputs.features, features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ten.confidence, posterior.max(1).mean(), rtol=1e-5)


def test_network_whose_outputs_are_not_finite_has_diverged():
    with pytest.raises(Diverged):
        measure(make_data(), sharpness=float("inf"))
