"""Errors of files that cannot be read, as one line that names the file and the remedy."""

import contextlib
from collections.abc import Iterator

from daaa_jax.errors import UserError, first_line


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
