"""A small disk in memory, which can be filled: used by `benchmarks.faults`."""

import contextlib
import errno
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_FILL_AGAIN = 0.005  # seconds


def can_be_mounted() -> bool:
    """Whether this process has the right to mount a tmpfs."""
    with tempfile.TemporaryDirectory() as folder:
        permitted = _mount(folder, mib=1) == 0
        if permitted:
            _unmount(folder)
    return permitted


@contextlib.contextmanager
def mounted(folder: Path, mib: int) -> Iterator[None]:
    """Mounts a tmpfs on a folder for the block; what it holds is lost afterwards.

    Raises:
      PermissionError: if it cannot be mounted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _mount(folder, mib):
        raise PermissionError(f"a tmpfs cannot be mounted on {folder}")
    try:
        yield
    finally:
        _unmount(folder)


def _mount(folder: str | Path, mib: int) -> int:
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode


def _unmount(folder: str | Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fills the disk of a folder, and keeps it full until the block ends, even if space is freed.

    A run frees space when it removes an older checkpoint.
    """
    done, path = threading.Event(), folder / "filler"
    with path.open("wb") as file:
        fill(file.fileno())

        def go_on() -> None:
            while not done.wait(_FILL_AGAIN):
                fill(file.fileno())

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            path.unlink()


def fill(file: int) -> None:
    """Extends an open file until its disk is full."""
    chunk = 2**22
    while chunk >= 2**9:
        try:
            os.posix_fallocate(file, os.fstat(file).st_size, chunk)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            chunk //= 2
