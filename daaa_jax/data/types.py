"""What a task consists of; the training view of a target domain has no labels, by type."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images, uint8 `[N,H,W,3]`, and their classes, int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class UnlabelledImages:
    """Images alone, uint8 `[N,H,W,3]`: all that training sees of a target domain."""

    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class MeasuredData:
    """Labels for measuring alone; a class that is not known is negative.

    Attributes:
      source_test: what the source domain is measured on.
      target_test: what the target domain is measured on.
      target_train: the training images, whose labels show how right the posteriors are.
      source_figure: what accuracy on `source_test` is called: `source_train` where a domain has no
        test images and is measured on its training images.
      target_images: what `target_test` is, in words.
      source_held_out: labelled source images that nothing is trained on, for validators that ask
        for them; None where none are held out.
      source_train: those that are.
    """

    source_test: LabelledImages
    target_test: LabelledImages
    target_train: LabelledImages
    source_figure: str = "source_test"
    target_images: str = "test images"
    source_held_out: LabelledImages | None = None
    source_train: LabelledImages | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A source and a target domain with the same classes.

    Attributes:
      source_name: of the source domain.
      target_name: of the target domain.
      class_names: of the K classes.
      source_train: what the source network is trained on.
      target_train: what stands for the target in training.
      evaluation: what the networks are measured on.
      left_out: by domain, images that could not be read and were left out.
      source_files: where each source training image lies in its domain; empty where they are no
        files of their own.
      target_files: likewise for the target.
    """

    source_name: str
    target_name: str
    class_names: tuple[str, ...]
    source_train: LabelledImages
    target_train: UnlabelledImages
    evaluation: MeasuredData
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    source_files: tuple[PurePath, ...] = ()
    target_files: tuple[PurePath, ...] = ()
