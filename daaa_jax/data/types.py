"""What a task consists of; the training view of a target domain has no labels, by type."""

import dataclasses

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
    """Labels for measuring alone; those of `target_train` show how right the posteriors are."""

    source_test: LabelledImages
    target_test: LabelledImages
    target_train: LabelledImages


@dataclasses.dataclass(frozen=True)
class Task:
    """A source and a target domain with the same classes."""

    source_name: str
    target_name: str
    class_names: tuple[str, ...]
    source_train: LabelledImages
    target_train: UnlabelledImages
    evaluation: MeasuredData
