"""Metrics of a run, as JSON lines and TensorBoard events."""

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daaa_jax.runtime import distributed, files
from daaa_jax.runtime.event_file import EventFile


class MetricWriter(contextlib.AbstractContextManager):
    """Writes metrics and images of a run, on process 0 only.

    `metrics.jsonl` has one JSON object per line: `stage`, `step`, and the metrics. TensorBoard
    shows each stage as a separate run, from `tensorboard/<stage>/`.
    """

    def __init__(self, path: Path, tensorboard: Path):
        """Opens the files to append to them, and creates them if needed.

        Args:
          path: the file of JSON lines.
          tensorboard: the folder of TensorBoard events.
        """
        self.path, self._events_folder = path, tensorboard
        self._events: dict[str, EventFile] = {}
        self._purge_steps: dict[str, int] = {}
        self._file: io.TextIOWrapper | None = None
        if distributed.is_first():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()

    def scalars(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of one step.

        Args:
          step: number of updates made.
          metrics: name → number or scalar array. Values that are not finite become null.
        """
        if self._file is None:
            return
        events, values = self._event_file(stage), files.plain(metrics)
        for name, value in values.items():
            if value is not None:
                events.scalar(name, value, step)
        # The file is line-buffered: a run that is killed keeps what it has logged.
        with files.named(self.path):
            self._file.write(_line({"stage": stage, "step": int(step), **values}))

    def image(self, stage: str, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, to TensorBoard only.

        Args:
          step: number of updates made.
          name: title of the image in TensorBoard.
          image: uint8 `[H, W, C]`, C being 1 or 3.

        Raises:
          ValueError: if `image` has another shape or type.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
            raise ValueError(
                f"{name} is {image.dtype}{list(image.shape)}, not uint8 [H, W, 1 or 3]"
            )
        if self._file is not None:
            self._event_file(stage).image(name, image, step)

    def drop_after(self, stage: str, step: int) -> None:
        """Removes what a stage wrote after a step, as the resumed run writes it again.

        Args:
          stage: the stage that resumes; call this before it writes anything.
          step: the restored step, whose entries are kept; -1 removes all entries of the stage.
        """
        if self._file is None:
            return
        self._file.close()
        kept = [x for x in read(self.path) if x["stage"] != stage or x["step"] <= step]
        content = "".join(map(_line, kept))
        if content != self.path.read_text():
            files.write_text(self.path, content)
        self._file = self._open()
        # Event files cannot be truncated; TensorBoard hides events from a purge step on.
        self._purge_steps[stage] = step + 1

    def flush(self) -> None:
        """Writes everything so far to disk."""
        if self._file is not None:
            with files.named(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())
            for events in self._events.values():
                events.flush()

    def close(self) -> None:
        """Flushes and closes the files, all of them even if one cannot be written."""
        if self._file is None:
            return
        with contextlib.ExitStack() as closing:
            closing.enter_context(files.named(self.path))
            closing.callback(self._file.close)
            for events in self._events.values():
                closing.callback(events.close)
            if not self._file.closed:
                self.flush()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # A file that cannot be written must not hide the error that ended the block.
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self.close()

    def _open(self) -> io.TextIOWrapper:
        return self.path.open("a", buffering=1, encoding="utf-8")

    def _event_file(self, stage: str) -> EventFile:
        if stage not in self._events:
            purge_step = self._purge_steps.get(stage)
            self._events[stage] = EventFile(self._events_folder / stage, purge_step)
        return self._events[stage]


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the metrics of a run, in the order they were written.

    Args:
      path: the file of JSON lines.

    Returns:
      One dict per line, with `stage`, `step` and the metrics; empty if nothing was written yet. A
      line that a killed run left incomplete is skipped.
    """
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and {"stage", "step"} <= line.keys():
                found.append(line)
    return found


def rounds(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of `read` that end a round of adaptation, one for each round so far."""
    return [line for line in lines if line["stage"] == "adapt" and "round_loss" in line]


def _line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(metrics, allow_nan=False) + "\n"
