"""Errors that the user can fix; one line says what is wrong, where, and what to do."""

from collections.abc import Collection
from typing import Any


class UserError(Exception):
    """A mistake in settings, files or data.

    Its message is a single line, followed by the files where several are named. Commands print it
    and exit with code 1, without a traceback.
    """


class Diverged(UserError):
    """A metric became infinite or NaN in training; the same settings would diverge again.

    Attributes:
      stage: that diverged; empty if not known.
    """

    stage = ""


def check_choice(
    name: str, value: Any, choices: Collection[Any], error: type[Exception] = ValueError
) -> None:
    """Checks that a setting or argument has one of its valid values.

    Raises:
      error: if not; names the valid values.
    """
    if value not in choices:
        expected = ", ".join(map(str, choices))
        raise error(f"{name}={value} is not known: expected one of {expected}")
