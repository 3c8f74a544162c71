"""Held-out labelled source images: a share of each class, and not trained on."""

import dataclasses
import pickle
import re
from pathlib import PurePath

import numpy as np
import pytest
from tiny import CLASSES, make_images, make_labelled

from daaa_jax.data import images as image_sets
from daaa_jax.data.holdout import hold_out
from daaa_jax.data.types import MeasuredData, Task, UnlabelledImages
from daaa_jax.errors import UserError


def make_task(**measured):
    source = make_labelled(60)
    return Task(
        source_name="a",
        target_name="b",
        class_names=tuple("wxyz"),
        source_train=source,
        target_train=UnlabelledImages(make_images(5)),
        evaluation=MeasuredData(source, source, source, **measured),
        source_files=tuple(PurePath(f"{row}.png") for row in range(60)),
    )


def rows_of(images, whole):
    return [int(np.flatnonzero((whole == image).all((1, 2, 3)))[0]) for image in images]


def test_a_share_of_each_class_is_held_out_and_nothing_lies_on_both_sides():
    task = make_task()
    labels = task.source_train.labels
    held = hold_out(task, 0.25, seed=0)
    out, train = held.evaluation.source_held_out, held.source_train
    assert held.evaluation.source_train is train
    here, there = (rows_of(part.images, task.source_train.images) for part in (train, out))
    assert sorted(here + there) == list(range(60))
    for rows, part in ((here, train), (there, out)):
        np.testing.assert_array_equal(part.labels, labels[rows])
    counts = np.bincount(labels, minlength=CLASSES)
    np.testing.assert_array_equal(np.bincount(out.labels), [round(0.25 * n) for n in counts])
    assert [int(path.stem) for path in held.source_files] == here
    others = hold_out(task, 0.25, seed=1).evaluation.source_held_out
    assert rows_of(others.images, task.source_train.images) != there


def test_a_domain_without_test_images_is_measured_on_those():
    held = hold_out(make_task(source_metric="source_train"), 0.25, 0)
    assert held.evaluation.source_metric == "source_test"
    assert held.evaluation.source_test is held.evaluation.source_held_out
    with_test = make_task()
    assert hold_out(with_test, 0.25, 0).evaluation.source_test is with_test.evaluation.source_test


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_that_leaves_a_class_empty_is_refused(share):
    with pytest.raises(UserError, match=rf"data\.source_holdout={re.escape(str(share))}\b.*\bw\b"):
        hold_out(make_task(), share, 0)


@pytest.mark.parametrize("kind", ["array", "file", "parts"])
def test_chosen_images_are_those_rows_and_files_stay_files(kind, tmp_path):
    whole, rows = make_images(7, size=4), np.array([5, 0, 6, 2])
    images = whole
    if kind == "file":
        np.save(tmp_path / "images.npy", whole)
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
    elif kind == "parts":
        images = image_sets.Images(whole[:3], whole[3:])
    chosen = image_sets.chosen(images, rows)
    assert isinstance(chosen, np.ndarray) == (kind == "array")
    for found in (chosen, pickle.loads(pickle.dumps(chosen)), image_sets.Images(chosen)):
        assert (len(found), found.shape, found.nbytes) == (4, (4, 4, 4, 3), 4 * 48)
        np.testing.assert_array_equal(np.asarray(found), whole[rows])
        np.testing.assert_array_equal(found[np.array([3, 0])], whole[[2, 5]])
    np.testing.assert_array_equal(
        np.asarray(image_sets.chosen(chosen, np.array([1, 2]))), whole[[0, 6]]
    )


def test_the_task_itself_is_left_alone():
    task = make_task()
    before = dataclasses.replace(task)
    hold_out(task, 0.5, 0)
    assert task == before
