"""A trace of some updates of a stage, for TensorBoard's profiler or Perfetto."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from daaa_jax.errors import counted
from daaa_jax.runtime import distributed

_UPDATES = 20
_WARM_UP = 5  # updates before them


class Profile(contextlib.ExitStack):
    """Traces up to 20 updates within one round, after a few warm-up updates, on process 0.

    A trace that is interrupted ends with the block.
    """

    def __init__(
        self,
        folder: Path | None,
        start: int,
        steps: int,
        round_steps: int,
        log: Callable[[str], None] = print,
    ):
        """Chooses the updates to trace.

        Args:
          folder: of the trace; None for no profile.
          start: updates made before this run, which resumes the stage.
          steps: number of updates in the stage.
          round_steps: updates between two evaluations, which are not traced.
          log: called with a line that names the folder.
        """
        super().__init__()
        self._folder = folder if distributed.is_first() else None
        self._log = log
        self._first = min(start + 1 + _WARM_UP, max(start + 1, steps - _UPDATES + 1))
        end_of_round = -(-self._first // round_steps) * round_steps
        self._last = min(self._first + _UPDATES - 1, end_of_round, steps)

    def before(self, step: int, state: Any) -> None:
        """Starts the trace before its first update; `step` counts from 1."""
        if self._folder is not None and step == self._first:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # each call would make a step many times slower
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self.callback(jax.profiler.stop_trace)

    def after(self, step: int, state: Any) -> None:
        """Stops the trace after its last update."""
        if self._folder is not None and step == self._last:
            jax.block_until_ready(state)
            self.close()
            updates = counted(self._last - self._first + 1, "update")
            self._log(f"profile of {updates} in {self._folder}")
