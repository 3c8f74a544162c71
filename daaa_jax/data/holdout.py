"""Labelled source images that nothing is trained on, for validators that ask for them."""

import dataclasses

import numpy as np

from daaa_jax.data import randomness
from daaa_jax.data.images import chosen
from daaa_jax.data.types import LabelledImages, Task
from daaa_jax.errors import UserError


def hold_out(task: Task, share: float, seed: int) -> Task:
    """Takes a share of each class from the source training images.

    Args:
      task: with all of them.
      share: between 0 and 1.
      seed: of the choice.

    Returns:
      The task with fewer training images; where its source domain was measured on those, it is
      measured on the held-out ones.

    Raises:
      UserError: if the share leaves a class without images to train on, or to hold out.
    """
    data, generator = task.source_train, randomness.generator(seed, "hold out")
    held: list[np.ndarray] = []
    for number, name in enumerate(task.class_names):
        rows = generator.permutation(np.flatnonzero(data.labels == number))
        count = round(share * len(rows))
        if not 0 < count < len(rows):
            raise UserError(
                f"data.source_holdout={share} holds out {count} of the {len(rows)} source images "
                f"of class {name}: choose another share"
            )
        held.append(rows[:count])
    apart = np.sort(np.concatenate(held))
    rest = np.setdiff1d(np.arange(len(data.labels)), apart)
    train, out = (
        LabelledImages(chosen(data.images, rows), data.labels[rows]) for rows in (rest, apart)
    )
    measured = dataclasses.replace(task.evaluation, source_held_out=out, source_train=train)
    if measured.source_figure == "source_train":
        measured = dataclasses.replace(measured, source_figure="source_test", source_test=out)
    files = tuple(task.source_files[row] for row in rest) if task.source_files else ()
    return dataclasses.replace(task, source_train=train, evaluation=measured, source_files=files)
