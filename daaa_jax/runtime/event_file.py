"""Event files for TensorBoard."""

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

from daaa_jax.runtime import files

_SECONDS_BETWEEN_FLUSHES = 10.0


class EventFile:
    """A new event file, written by the thread that calls.

    tensorboardX's `SummaryWriter` has a thread for it. On a full disk that thread would end with a
    traceback, and the run would wait for it forever.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        """Creates the file, and its folder if needed.

        Args:
          folder: TensorBoard shows the files of a folder as one run.
          purge_step: the first step that is written again; TensorBoard hides the steps from there
            on in older files.
        """
        # Imported here, as it takes a second or more.
        from tensorboardX import RecordWriter, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._protocol = summary, event_pb2
        self.path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        folder.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(str(self.path))
        self._flushed = 0.0
        self._write(0, file_version="brain.Event:2")
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(purge_step, file_version="brain.Event:2")
            self._write(purge_step, session_log=start)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes a number."""
        self._write(step, summary=self._summary.scalar(name, value))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Writes an image, uint8 `[H,W,C]`."""
        self._write(step, summary=self._summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Writes everything so far to disk."""
        with files.named(self.path):
            self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        with files.named(self.path):
            self._records.close()

    def _write(self, step: int, **content: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), step=step, **content)
        with files.named(self.path):
            self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self.flush()
