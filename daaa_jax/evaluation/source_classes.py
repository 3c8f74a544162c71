"""Checks that an external source network has its classes in the order of the labels."""

import numpy as np
from scipy import optimize

from daaa_jax.errors import UserError, listed

_GAIN = 0.3  # of accuracy, from which another order is certain


def check(confusion: np.ndarray, names: tuple[str, ...], where: str) -> str:
    """Checks a source network on its own domain.

    Args:
      confusion: counts by true (row) and predicted (column) class, `[K,K]`.
      names: of the classes, in the order of the labels.
      where: the network came from.

    Returns:
      A warning, where the network is hardly better than chance; empty otherwise.

    Raises:
      UserError: if another one-to-one order of its outputs raises the accuracy by more than 30
        points.
    """
    total, classes = max(confusion.sum(), 1), len(names)
    accuracy = np.trace(confusion) / total
    true, predicted = optimize.linear_sum_assignment(confusion, maximize=True)
    matched = confusion[true, predicted].sum() / total
    if matched - accuracy > _GAIN:
        order = [
            f"output {column} is {names[row]}"
            for row, column in sorted(zip(true, predicted, strict=True), key=lambda pair: pair[1])
            if row != column
        ]
        raise UserError(
            f"source.checkpoint={where} is right on {accuracy:.0%} of the source's images, and on "
            f"{matched:.0%} if its classes are in another order ({listed(order)}): rename the "
            "class folders so that their alphabetical order is that of its outputs, or set "
            "data.class_names of a list file"
        )
    least = min(3 / classes, (1 + 1 / classes) / 2)
    if accuracy < least:
        return (
            f"warning: source.checkpoint={where} is right on {accuracy:.1%} of the source's images "
            f"only, expected at least {least:.0%}: it may be of other classes, or see other inputs"
        )
    return ""
