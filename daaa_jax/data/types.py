"""Data types of a task. The type of a target domain's training images has no labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import numpy as np

from daaa_jax.data.images import ImageArray, chosen


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images, uint8 `[N,H,W,3]`, and their classes, int32 `[N]`."""

    images: ImageArray
    labels: np.ndarray

    def subset(self, rows: np.ndarray) -> "LabelledImages":
        """Those of `rows`, in that order."""
        return LabelledImages(chosen(self.images, rows), self.labels[rows])


@dataclasses.dataclass(frozen=True)
class UnlabelledImages:
    """Images without labels, uint8 `[N,H,W,3]`: all that training sees of a target domain."""

    images: ImageArray


@dataclasses.dataclass(frozen=True)
class MeasuredData:
    """Labelled images for evaluation only; unknown classes are negative.

    Attributes:
      source_test: evaluation images of the source domain.
      target_test: evaluation images of the target domain.
      target_train: training images of the target domain, to measure the posteriors' accuracy.
      source_metric: metric name of the accuracy on `source_test`; `source_train` if the domain has
        no test images and is measured on its training images.
      target_images: description of `target_test`.
      source_held_out: source images held out of training, for validators that need them; None if
        none are held out.
      source_train: the remaining source training images; None if none are held out.
    """

    source_test: LabelledImages
    target_test: LabelledImages
    target_train: LabelledImages
    source_metric: str = "source_test"
    target_images: str = "test images"
    source_held_out: LabelledImages | None = None
    source_train: LabelledImages | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A source and a target domain with the same classes.

    Attributes:
      source_name: name of the source domain.
      target_name: name of the target domain.
      class_names: names of the K classes, in the order of the labels.
      source_train: labelled training images of the source.
      target_train: unlabelled training images of the target.
      evaluation: labelled images for evaluation.
      left_out: number of unreadable images that were left out, by domain.
      source_files: path of each source training image within its domain; empty if the images are
        not separate files.
      target_files: likewise for the target.
      ranges: values shown as black and white, by `source` and `target` and by number type, see
        `data.photos.value_ranges`; empty for 8-bit images.
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
    ranges: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(default_factory=dict)
