"""SVHN's cropped digits from its two `.mat` files."""

from pathlib import Path

import numpy as np

from daaa_jax.data.mnist import check_labels
from daaa_jax.data.types import LabelledImages
from daaa_jax.errors import UserError, reading


def load(folder: Path, split: str) -> LabelledImages:
    """Reads one split.

    Args:
      folder: contains `train_32x32.mat` and `test_32x32.mat` (http://ufldl.stanford.edu/housenumbers/).
      split: `train` or `test`.

    Returns:
      Images, uint8 `[N,32,32,3]`, and labels.

    Raises:
      UserError: if a file is missing or not as expected.
    """
    from scipy.io import loadmat  # here, as most tasks do not need it

    path = folder / f"{split}_32x32.mat"
    with reading(path, "put SVHN's cropped digits (format 2) there"):
        content = loadmat(str(path))
        images, labels = content["X"], content["y"].ravel().astype(np.int32)
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        what = f"{images.dtype} of shape {images.shape} for {len(labels)} labels"
        expected = "bytes, 32 x 32 x 3 x their number"
        raise UserError(f"{path} holds {what}, expected {expected}: download it again")
    labels[labels == 10] = 0  # its number for the digit 0
    check_labels(labels, path)
    return LabelledImages(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels)
