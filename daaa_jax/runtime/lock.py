"""A working directory is one run's at a time: two would write the same files and count twice."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from daaa_jax.errors import UserError
from daaa_jax.runtime import distributed

NAME = ".lock"


class Busy(UserError):
    """Another run is writing to a working directory."""


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps a working directory for this process until the block ends or it does; makes it too.

    Not of several processes: their launcher starts a run once, and a host that is lost may seem to
    hold its lock for a while. A file system without locks has none.

    Raises:
      Busy: if another process holds it.
      UserError: if it cannot be written.
    """
    if distributed.started():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / NAME).open("w")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"another run is writing to {workdir}: wait for its end, or choose another folder"
            ) from error
        except OSError:
            pass
        yield
