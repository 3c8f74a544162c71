"""Files with the tracebacks of unexpected errors, of which a command prints a single line."""

import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

_workdirs: list[Path] = []


def use(workdir: Path) -> None:
    """Has errors from here on logged in a working directory, if it exists by then."""
    _workdirs[:] = [workdir]


def write(error: BaseException) -> str:
    """Writes the traceback of an error to a new file.

    Returns:
      Path of the file, in the working directory or else the folder for temporary files; empty if
      neither can be written.
    """
    lines = [f"command: {shlex.join(sys.argv)}\n\n", *traceback.format_exception(error)]
    content = "".join(lines).encode(errors="backslashreplace")
    for folder in (*_workdirs, None):
        try:
            number, path = tempfile.mkstemp(".log", "daaa-error-", folder)
            with os.fdopen(number, "wb") as file:
                file.write(content)
            return path
        except OSError:
            continue
    return ""
