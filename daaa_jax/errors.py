"""Errors that the user can fix: one line says what is wrong, where, and what to do."""

from collections.abc import Collection
from typing import Any


class UserError(Exception):
    """A mistake in settings, files or data.

    Its message is a single line. Commands print it and exit with code 1, without a traceback.
    """


class Diverged(UserError):
    """Training became infinite or NaN, and with these settings does so each time.

    Attributes:
      stage: that did, where it is known.
    """

    stage = ""


def check_choice(
    name: str, value: Any, choices: Collection[Any], error: type[Exception] = ValueError
) -> None:
    """Makes sure that a setting or argument has one of its values.

    Raises:
      error: names the values.
    """
    if value not in choices:
        expected = ", ".join(map(str, choices))
        raise error(f"{name}={value} is not known: expected one of {expected}")
