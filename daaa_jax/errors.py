"""Errors that the user can fix; one line says what is wrong, where, and what to do."""

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
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


@contextlib.contextmanager
def writable(what: object, kind: type[Exception] = OSError) -> Iterator[None]:
    """Turns an error of a block, such as a full disk, into a `UserError`.

    Not if the reader of standard output has ended, as in `… | head`: that is no fault of `what`.

    Args:
      what: the flag with its value, setting or file that the user gave, or can give.
      kind: of the errors, where a library does not raise `OSError`.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except kind as error:
        raise UserError(f"{what} cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def readable(what: object) -> Iterator[None]:
    """Turns an `OSError` of a block, such as a missing file, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be read: {reason(error)}") from error


@contextlib.contextmanager
def reading(what: object, remedy: str = "download it again") -> Iterator[None]:
    """Turns any error of a block into a `UserError`; damaged files raise errors of many classes.

    Args:
      what: the file, for the message.
      remedy: what to do about it.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{what} cannot be read ({first_line(error)}): {remedy}") from error


def reason(error: Exception) -> str:
    """Why something failed, in one line: what the system says, such as `permission denied`."""
    return (getattr(error, "strerror", None) or first_line(error)).lower()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, up to 200 characters; without a message its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, in one line; beyond `most`, how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    text = ", ".join(names[:most]) + more
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 image`, `2 images`, `3 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def check_pattern(name: str, value: str) -> None:
    """Checks that a setting is a regular expression.

    Raises:
      UserError: if not.
    """
    try:
        re.compile(value)
    except re.error as error:
        raise UserError(f"{name}={value} is not a regular expression: {error}") from error


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
