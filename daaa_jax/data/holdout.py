"""Holds labelled source images out of training, for validators that need them."""

import dataclasses

import numpy as np

from daaa_jax.data import randomness
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError


def hold_out(task: Task, share: float, seed: int) -> Task:
    """Holds a share of each class out of the source training images.

    Args:
      task: task without held-out images.
      share: fraction of each class, between 0 and 1.
      seed: seed of the random choice.

    Returns:
      The task with fewer training images. If source accuracy was measured on the training images,
      it is measured on the held-out images instead.

    Raises:
      UserError: if a class has no image left to train on, or none to hold out.
    """
    data, generator = task.source_train, randomness.generator(seed, "hold out")
    held: list[np.ndarray] = []
    for number, name in enumerate(task.class_names):
        rows = generator.permutation(np.flatnonzero(data.labels == number))
        count = round(share * len(rows))
        if not 0 < count < len(rows):
            what = f"{count} of the {len(rows)} source images of class {name}"
            raise UserError(f"data.source_holdout={share} holds out {what}: choose another share")
        held.append(rows[:count])
    apart = np.sort(np.concatenate(held))
    rest = np.setdiff1d(np.arange(len(data.labels)), apart)
    train, out = data.subset(rest), data.subset(apart)
    measured = dataclasses.replace(task.evaluation, source_held_out=out, source_train=train)
    if measured.source_metric == "source_train":
        measured = dataclasses.replace(measured, source_metric="source_test", source_test=out)
    files = tuple(task.source_files[row] for row in rest) if task.source_files else ()
    return dataclasses.replace(task, source_train=train, evaluation=measured, source_files=files)
