"""Progress of a stage: a bar on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from daaa_jax.runtime import distributed

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_ON_A_TERMINAL = 0.5


class Progress(contextlib.AbstractContextManager):
    """Shows steps made, metrics, speed and time left on standard error, on process 0 only.

    Metrics may be arrays that are still being computed: they are waited for only when they are
    shown.
    """

    def __init__(self, label: str, total: int, initial: int = 0, *, stream: TextIO | None = None):
        """Starts the display; on a terminal the bar is visible at once.

        Args:
          label: what the steps are of, such as the stage's name.
          total: number of steps.
          initial: steps made before, by the run that this one resumes.
          stream: by default standard error.
        """
        self._label, self._total = label, total
        self._stream = stream or sys.stderr
        self._silent = not distributed.is_first()
        self._step, self._shown = initial, initial
        self._metrics: Mapping[str, Any] = {}
        self._first: tuple[int, float] | None = None  # after the first step, which compiles
        self._shown_at, self._interval, self._bar = time.monotonic(), _SECONDS_BETWEEN_LINES, None
        if not self._silent and self._stream.isatty():
            from tqdm import tqdm

            self._interval = _SECONDS_ON_A_TERMINAL
            self._bar = tqdm(
                total=total, initial=initial, desc=label, file=self._stream, dynamic_ncols=True
            )

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Records the steps made, and shows them at intervals.

        Args:
          step: number of steps made in all.
          metrics: name → number to show, such as loss and accuracy.
        """
        now = time.monotonic()
        self._step, self._metrics = step, metrics
        self._first = self._first or (step, now)
        if now - self._shown_at >= self._interval or step >= self._total:
            self._show(now)

    def line(self, text: str) -> None:
        """Writes a line, without disturbing the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif not self._silent:
            print(text, file=self._stream, flush=True)

    def __exit__(self, *exception: object) -> None:
        self._show(time.monotonic())
        if self._bar is not None:
            self._bar.close()

    def _show(self, now: float) -> None:
        if self._silent or self._step == self._shown:
            return
        self._shown, self._shown_at = self._step, now
        texts = {name: f"{float(value):.4g}" for name, value in self._metrics.items()}
        left = []
        step, start = self._first or (self._step, now)
        if self._step > step:
            seconds = (now - start) / (self._step - step)
            left = [f"{seconds:.3g} s/step, {_duration((self._total - self._step) * seconds)}"]
        if self._bar is not None:
            self._bar.set_postfix(texts, refresh=False)
            self._bar.update(self._step - self._bar.n)
            return
        parts = [f"{self._label} {self._step}/{self._total}"]
        parts += [f"{name} {text}" for name, text in texts.items()]
        print(" ".join(parts + left), file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    for least, unit, name in ((90 * 60, 3600, "h"), (90, 60, "min")):
        if seconds >= least:
            return f"{seconds / unit:.{int(unit == 3600)}f} {name} left"
    return f"{seconds:.0f} s left"
