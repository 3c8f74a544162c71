"""Exit codes of commands that train, with one line on standard error for expected failures."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable

from daaa_jax.errors import UserError

# A full disk, a quota, missing permissions, a failing disk: no bugs of the program.
_FIXED_BY_USER = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENAMETOOLONG,
}


def run(command: Callable[[], int | None]) -> None:
    """Calls a command, and ends the process with its exit code.

    The code is what the command returns, or 0, when finished; 1, with one line, if a person must
    fix something; and `distributed.RESTART` if the same command resumes the run: after SIGTERM, and
    when another process of the run has ended or did not connect in time.
    """
    try:
        sys.exit(command())
    except UserError as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        print("interrupted; what was saved is kept", file=sys.stderr, flush=True)
        # Ends by the signal, so that a calling shell script ends too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FIXED_BY_USER:
            reason = (error.strerror or str(error)).lower()
            _end(f"error: {error.filename or 'a file'}: {reason}", 1)
        # Imported here, so that a misspelt flag is reported at once.
        from daaa_jax.runtime import distributed, preemption

        if isinstance(error, preemption.Preempted):
            sys.stderr.write(f"preempted: {error}; rerun the same command to resume\n")
            sys.exit(distributed.RESTART)
        if isinstance(error, distributed.Unreached):
            _end(f"error: {error}", distributed.RESTART)
        if distributed.is_loss(error):
            _end(f"error: {distributed.loss(error)}", distributed.RESTART)
        if distributed.started():  # a normal exit would wait for the others
            _end(traceback.format_exc(), 1)
        raise


def _end(message: str, code: int) -> None:
    """Ends the process; one of several does not wait for the others, which may wait for it."""
    sys.stderr.write(f"{message}\n")
    if "jax" in sys.modules:
        from daaa_jax.runtime import distributed

        if distributed.started():
            distributed.end_at_once(code)
    sys.exit(code)
