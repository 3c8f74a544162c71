"""How a command that trains ends: its exit code, and one line for a person."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable

from daaa_jax.errors import UserError

# A full disk, a quota, no permission, a disk that fails: nothing of the program's own.
_TO_MEND = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENAMETOOLONG,
}


def run(command: Callable[[], None]) -> None:
    """Calls a command, and ends the process where it fails.

    With 0 when all is done, with 1 and one line where a person must mend something, and with
    `distributed.RESTART` where the same command goes on: after SIGTERM, and when another process
    of the run has ended, or was not there in time.
    """
    try:
        command()
    except UserError as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was saved is kept\n")
        sys.stderr.flush()
        # Of the signal, so that a shell script around it ends too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _TO_MEND:
            _end(f"error: {error.filename or 'a file'}: {error.strerror.lower()}", 1)
        # Imported here, so that a misspelt flag is answered at once.
        from daaa_jax.runtime import distributed, preemption

        if isinstance(error, preemption.Preempted):
            sys.stderr.write(f"told to end: {error}; the same command goes on from there\n")
            sys.exit(distributed.RESTART)
        if isinstance(error, distributed.Unreached):
            _end(f"error: {error}", distributed.RESTART)
        if distributed.is_loss(error):
            _end(f"error: {distributed.loss(error)}", distributed.RESTART)
        if distributed.started():  # its usual end would wait for the others
            _end(traceback.format_exc(), 1)
        raise


def _end(message: str, code: int) -> None:
    """Ends the process; one of several does not wait for the others, who may wait for it."""
    sys.stderr.write(f"{message}\n")
    if "jax" in sys.modules:
        from daaa_jax.runtime import distributed

        if distributed.started():
            distributed.end_at_once(code)
    sys.exit(code)
