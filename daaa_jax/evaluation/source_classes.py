"""Checks that an external source network has its classes in the order of the labels."""

import numpy as np
from scipy import optimize

from daaa_jax.errors import UserError, listed

_GAIN = 0.3  # of accuracy, from which another order is certain


def check(confusion: np.ndarray, names: tuple[str, ...], where: str) -> None:
    """Checks a source network on its own domain; warns where it is hardly better than chance.

    Args:
      confusion: counts by true (row) and predicted (column) class, `[K,K]`.
      names: of the classes, in the order of the labels.
      where: the network came from.

    Raises:
      UserError: if another one-to-one order of its outputs raises the accuracy by more than 30
        points.
    """
    total, classes = max(confusion.sum(), 1), len(names)
    accuracy = np.trace(confusion) / total
    true, predicted = optimize.linear_sum_assignment(confusion, maximize=True)
    matched = confusion[true, predicted].sum() / total
    if matched - accuracy > _GAIN:
        pairs = sorted(zip(predicted, true, strict=True))
        order = [f"output {output} is {names[label]}" for output, label in pairs if output != label]
        raise UserError(
            f"source.checkpoint={where} is right on {accuracy:.0%} of the source's images, and on "
            f"{matched:.0%} if its classes are in another order ({listed(order)}): rename the "
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
