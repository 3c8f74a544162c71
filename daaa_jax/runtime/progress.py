"""How far a stage has come: a bar on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from daaa_jax.runtime import distributed

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_REFRESHES = 0.5


class Progress(contextlib.AbstractContextManager):
    """Shows steps made, figures, speed and time left on the standard error output.

    Figures may be arrays still being computed: they are looked at, and so waited for, only when
    they are about to be shown. Only process 0 shows anything.
    """

    def __init__(
        self,
        label: str,
        total: int,
        initial: int = 0,
        *,
        later: float = 0.0,
        stream: TextIO | None = None,
        seconds_between_lines: float = _SECONDS_BETWEEN_LINES,
    ):
        """Begins, at once visible on a terminal.

        Args:
          label: what is going on, such as the stage's name.
          total: how many steps there are.
          initial: how many were made before, by the run that this one resumes.
          later: how many of these steps what follows in the run costs, about.
          stream: where to show it, by default the standard error output.
          seconds_between_lines: how seldom a plain line is written.
        """
        self._label = label
        self._total = total
        self._step, self._later = initial, later
        self._stream = stream or sys.stderr
        self._silent = not distributed.is_first()
        self._bar = None
        self._first: tuple[int, float] | None = None
        self._shown_step: int | None = None
        self._shown_at = time.monotonic()
        self._figures: Mapping[str, Any] = {}
        self._interval = seconds_between_lines
        if not self._silent and self._stream.isatty():
            from tqdm import tqdm

            self._interval = _SECONDS_BETWEEN_REFRESHES
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=label,
                file=self._stream,
                dynamic_ncols=True,
                mininterval=_SECONDS_BETWEEN_REFRESHES,
            )

    def update(self, step: int, figures: Mapping[str, Any]) -> None:
        """Tells how many steps have been made.

        Args:
          step: the number of steps made in all.
          figures: name → number to show beside it, such as loss and accuracy.
        """
        if self._silent:
            return
        now = time.monotonic()
        self._step, self._figures = step, figures
        if self._first is None:
            # The clock starts after the first step, which compiles.
            self._first = (step, now)
        if now - self._shown_at >= self._interval or step >= self._total:
            self._show(now)

    def line(self, text: str) -> None:
        """Writes a line that must be seen, bar or no bar.

        Args:
          text: the line, without its end.
        """
        if self._silent:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows where it ended, and gives the terminal's line back."""
        if self._silent:
            return
        if self._step != self._shown_step and self._first is not None:
            self._show(time.monotonic())
        if self._bar is not None:
            self._bar.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _show(self, now: float) -> None:
        if self._step == self._shown_step:
            return
        self._shown_step, self._shown_at = self._step, now
        figures = {name: f"{float(value):.4g}" for name, value in self._figures.items()}
        if self._bar is not None:
            first_step, first_time = self._first or (self._step, now)
            if self._later and self._step > first_step:
                seconds = (now - first_time) / (self._step - first_step)
                left = (self._total - self._step) * seconds
                figures["run"] = self._of_the_run(left, seconds).removeprefix(", all ")
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(self._step - self._bar.n)
            return
        parts = [f"{self._label} {self._step}/{self._total}"]
        parts += [f"{name} {text}" for name, text in figures.items()]
        first_step, first_time = self._first or (self._step, now)
        if self._step > first_step:
            seconds = (now - first_time) / (self._step - first_step)
            left = (self._total - self._step) * seconds
            parts.append(
                f"{seconds:.3g} s/step, {_duration(left)}{self._of_the_run(left, seconds)}"
            )
        print(" ".join(parts), file=self._stream, flush=True)

    def _of_the_run(self, left: float, seconds: float) -> str:
        """The time left of all stages, at the speed of this one; empty in the last."""
        if not self._later:
            return ""
        return f", all about {_duration(left + self._later * seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s left"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds / 3600:.1f} h left"
