"""Checks that an external source network has its classes in the order of the labels."""

import numpy as np
from scipy import optimize

from daaa_jax.errors import UserError, listed

_GAIN = 0.3  # of accuracy on held-out images, from which another order is certain


def check(predicted: np.ndarray, labels: np.ndarray, names: tuple[str, ...], where: str) -> None:
    """Checks a source network on its own domain; warns where it is hardly better than chance.

    Args:
      predicted: class of each image, `[N]`.
      labels: true classes, `[N]`.
      names: of the K classes, in the order of the labels.
      where: the network came from.

    Raises:
      UserError: if the one-to-one order of its outputs that fits one half of the images best raises
        the accuracy on the other half by more than 30 points; or, as classes may have one image
        each, the order that fits all best raises that on all by more than 85 points.
    """
    accuracy, classes = np.mean(predicted == labels), len(names)
    # Every other image of each class, as the best of many orders fits a few images by chance.
    rows = np.argsort(labels, kind="stable")
    # An order fits an image of each of ten classes so well by chance in one of 100 cases.
    of_all = 0.85 if len(rows) >= max(10, classes) else 1
    for fitted, measured, gain in ((rows[::2], rows[1::2], _GAIN), (rows, rows, of_all)):
        counts = np.eye(classes) / (2 * classes)  # decides between orders that fit equally well
        np.add.at(counts, (predicted[fitted], labels[fitted]), 1)
        _, order = optimize.linear_sum_assignment(counts, maximize=True)
        right, matched = (
            np.mean(found[measured] == labels[measured]) if len(measured) else 0
            for found in (predicted, order[predicted])
        )
        if matched - right <= gain:
            continue
        moved = [f"output {n} is {names[label]}" for n, label in enumerate(order) if n != label]
        raise UserError(
            f"source.checkpoint={where} is right on {right:.0%} of the source's images, and on "
            f"{matched:.0%} if its classes are in another order ({listed(moved)}): rename the "
            "class folders so that their alphabetical order is that of its outputs, or set "
            "data.class_names of a list file"
        )
    least = min(3 / classes, (1 + 1 / classes) / 2)
    if accuracy < least:
        print(
            f"warning: source.checkpoint={where} is right on {accuracy:.1%} of the source's images "
            f"only, expected at least {least:.0%}: it may be of other classes, or see other inputs",
            flush=True,
        )
