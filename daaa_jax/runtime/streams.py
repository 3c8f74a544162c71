"""Standard output and error of a command: characters they cannot encode, readers that have gone."""

import contextlib
import os
import select
import sys
from typing import TextIO


def prepare() -> None:
    """Lets both streams take any text.

    Characters that the encoding lacks, as in class names on a latin-1 terminal, are escaped. A
    closed stream (`>&-`) becomes /dev/null, or a file opened later would take its place.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open_null())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def open_null() -> TextIO:
    """A stream that takes any text and discards it."""
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115


def is_reader_gone() -> bool:
    """Whether whatever read the output has ended, as in `daaa check … | head`."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # not a file, as in a notebook
            poll.register(stream.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def end() -> None:
    """Writes what is buffered; where that fails it is discarded, as Python would fail again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
