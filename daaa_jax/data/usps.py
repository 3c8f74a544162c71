"""USPS from `usps.h5` or LIBSVM's two `.bz2` files, enlarged and padded like MNIST."""

from pathlib import Path

import numpy as np
from PIL import Image

from daaa_jax.data.mnist import check_labels, pad
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError, reading

_SIDE, _ENLARGED = 16, 28  # pixels
_H5, _BZ2 = "usps.h5", {"train": "usps.bz2", "test": "usps.t.bz2"}


def load(folder: Path, split: str) -> LabelledImages:
    """Reads one split.

    Args:
      folder: contains `usps.h5` (https://www.kaggle.com/datasets/bistaumanga/usps-dataset; needs
        h5py), or `usps.bz2` and `usps.t.bz2` (LIBSVM's, https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps).
      split: `train` or `test`.

    Returns:
      Images, uint8 `[N,32,32,3]`: the 16x16 digits, which fill their frame, enlarged to MNIST's
      28x28 by bilinear interpolation, then padded; and labels.

    Raises:
      UserError: if a file is missing or not as expected.
    """
    path, read = folder / _H5, _read_h5
    if not path.is_file():
        path, read = folder / _BZ2[split], _read_bz2
    with reading(path, f"put it there, or {_H5}, see daaa_jax/data/usps.py"):
        grey, labels = read(path, split)
    check_labels(labels, path)
    if grey.shape != (len(labels), _SIDE**2):
        raise UserError(f"{path} holds values of shape {grey.shape} for {len(labels)} labels")
    if not (grey.min(initial=0) >= 0 and grey.max(initial=0) <= 1):
        raise UserError(f"{path} holds values outside 0..1: is it a file of another dataset?")
    images = [
        np.asarray(Image.fromarray(image).resize((_ENLARGED,) * 2, Image.Resampling.BILINEAR))
        for image in np.rint(255 * grey).astype(np.uint8).reshape(-1, _SIDE, _SIDE)
    ]
    return LabelledImages(pad(np.stack(images)), labels)


def _read_h5(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Values in [0, 1], `[N,256]`, and labels, int32 `[N]`."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} needs h5py: pip install h5py") from error
    with h5py.File(path) as file:
        part = file[split]
        return np.asarray(part["data"], np.float64), np.asarray(part["target"], np.int32)


def _read_bz2(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The same; the file has a line per image, classes from 1 and values in [-1, 1]."""
    from sklearn.datasets import load_svmlight_file

    values, labels = load_svmlight_file(str(path), n_features=_SIDE**2, zero_based=False)
    return (values.toarray() + 1) / 2, labels.astype(np.int32) - 1
