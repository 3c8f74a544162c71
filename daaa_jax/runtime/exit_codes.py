"""How commands end: their exit codes, and one line on standard error for every failure."""

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from daaa_jax.errors import UserError, first_line, listed, reason
from daaa_jax.runtime import error_log, streams

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


def run_module(name: str) -> NoReturn:
    """Runs a command by its module; errors of imports, such as JAX's, are reported like others."""
    run(lambda: importlib.import_module(name).main())


def run(command: Callable[[], int | None]) -> NoReturn:
    """Calls a command, and ends the process with its exit code.

    The code is what the command returns, or 0, when finished; 1, with one line, if a person must
    fix something or after an unexpected error, whose traceback is in a file; and
    `distributed.RESTART` if the same command resumes the run: after SIGTERM, and when another
    process of the run has ended or did not connect in time. Where the output's reader has ended, as
    in `… | head`, and after Ctrl-C, the process ends by the signal.
    """
    streams.prepare()
    try:
        code = _code_of(command)
    except KeyboardInterrupt:
        _say("interrupted; what was saved is kept")
        _end_by(signal.SIGINT)  # a calling shell script ends too
    except Exception as error:
        if isinstance(error, BrokenPipeError) and streams.is_reader_gone():
            _end_by(signal.SIGPIPE)
        _end_after(error)
    streams.end()
    sys.exit(code)


def _code_of(command: Callable[[], int | None]) -> int | str | None:
    """Calls a command; what it printed is written out, so that a closed pipe is noticed here."""
    try:
        code: int | str | None = command()
    except SystemExit as error:  # of --help
        code = error.code
    sys.stdout.flush()
    return code


def _end_after(error: Exception) -> NoReturn:
    """Ends the process with the line and the exit code of an error."""
    if isinstance(error, UserError):
        _end(f"error: {error}", 1)
    if isinstance(error, OSError) and error.errno in _FIXED_BY_USER:
        _end(f"error: {error.filename or 'a file'}: {reason(error)}", 1)
    if why := _why_no_jax(error):
        _end(f"error: {why}", 1)
    # Imported here, so that a misspelt flag is reported at once.
    from daaa_jax.runtime import distributed, preemption

    if isinstance(error, preemption.Preempted):
        resume = "rerun the same command to resume"
        _end(f"preempted: {error}; {resume}", distributed.RESTART, waits=True)
    if isinstance(error, distributed.Unreached):
        _end(f"error: {error}", distributed.RESTART)
    if distributed.is_loss(error):
        _end(f"error: {distributed.loss(error)}", distributed.RESTART)
    path = error_log.write(error)
    where = f"the traceback is in {path}" if path else "set TMPDIR to a folder for its traceback"
    _end(f"error: {type(error).__name__}: {first_line(error)}; {where}", 1)


def _why_no_jax(error: Exception) -> str:
    """Why JAX cannot be imported, as with an invalid value in the environment; empty if it can.

    Args:
      error: of its first import; a second one fails for another reason.
    """
    try:
        importlib.import_module("jax")
        return ""
    except Exception:
        given = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("JAX_")]
        return f"JAX cannot be imported with {listed(given) or 'no settings'}: {first_line(error)}"


def _end(message: str, code: int, waits: bool = False) -> NoReturn:
    """Ends the process; one of several only `waits` for the others if they do not wait for it."""
    _say(message)
    streams.end()
    if "jax" in sys.modules and not waits:
        from daaa_jax.runtime import distributed

        if distributed.started():
            distributed.end_at_once(code)
    sys.exit(code)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the reader of standard error may have ended
        print(line, file=sys.stderr, flush=True)


def _end_by(number: signal.Signals) -> NoReturn:
    """Ends the process by a signal, as if it had never been handled."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container ignores it
