"""A profile of a stage: a trace of some updates for a viewer, and a summary by operation."""

import collections
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from daaa_jax.runtime import distributed, markers

SUMMARY = "summary.md"
_UPDATES = 20
_WARM_UP = 5  # updates before them
_SHOWN = 40  # operations


@dataclasses.dataclass
class _Operation:
    calls: int = 0
    nanoseconds: float = 0.0


class Profile:
    """Traces 20 updates of a stage, after a few others and within one round; a context manager.

    On the first process alone.
    """

    def __init__(
        self,
        folder: Path | None,
        start: int,
        steps: int,
        round_steps: int,
        tell: Callable[[str], None] = print,
    ):
        """Traces nothing yet.

        Args:
          folder: where the trace shall lie; None for no profile.
          start: updates made before.
          steps: of the stage.
          round_steps: after so many comes what is no update.
          tell: is told where the profile lies.
        """
        self._folder = folder if distributed.is_first() else None
        self._first = min(start + 1 + _WARM_UP, max(start + 1, steps - _UPDATES + 1))
        end_of_round = -(-self._first // round_steps) * round_steps
        self._last = min(self._first + _UPDATES - 1, end_of_round, steps)
        self._tell, self._tracing = tell, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends a trace that something has interrupted."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def before(self, step: int, state: Any) -> None:
        """Begins the trace if this update, counted from 1, is the first of it."""
        if self._folder is not None and step == self._first:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # each call would make a step many times slower
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True

    def after(self, step: int, state: Any, program: Any) -> None:
        """Ends it after the last, and writes the summary.

        Args:
          step: the update, counted from 1.
          state: after it.
          program: the compiled step, which says what its operations are for.
        """
        if not self._tracing or step != self._last:
            return
        jax.block_until_ready(state)
        self._tracing = False
        jax.profiler.stop_trace()
        newest = max(self._folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        updates = self._last - self._first + 1
        trace = ProfileData.from_file(str(newest))
        text = summary(trace, program.as_text(), updates, jax.local_device_count())
        markers.write_bytes(self._folder / SUMMARY, text.encode())
        self._tell(f"profile of {updates} updates in {self._folder}")


def places(text: str) -> dict[str, str]:
    """Of a compiled program's operations by name, what in the code they come from.

    Args:
      text: of the program.
    """
    found = re.findall(r"%?([\w.-]+) = .*metadata=\{[^}]*op_name=\"([^\"]*)\"", text)
    return {name: re.sub(r"^jit\([^)]*\)/", "", place) for name, place in found}


def summary(trace: Any, program: str, updates: int, devices: int = 1) -> str:
    """A table of the operations of the step that took longest, as Markdown.

    Args:
      trace: a `ProfileData`.
      program: the text of the compiled step; other programs of the trace are left out.
      updates: that were traced.
      devices: that made them; the table is of their mean.
    """
    module = program.removeprefix("HloModule ").split(",")[0].strip()
    where = places(program)
    operations: dict[str, _Operation] = collections.defaultdict(_Operation)
    for plane in trace.planes:
        for line in plane.lines:
            for name, duration in _own_times(line, module):
                operations[name].calls += 1
                operations[name].nanoseconds += duration
    if not operations:
        return f"{updates} updates. The trace beside this names no operations of the step.\n"
    each = updates * devices
    total = sum(operation.nanoseconds for operation in operations.values())
    ordered = sorted(operations.items(), key=lambda item: -item[1].nanoseconds)
    rows = [
        f"| {name} | {where.get(name, '')} | {one.calls / each:g} "
        f"| {one.nanoseconds / each / 1e6:.3f} | {one.nanoseconds / max(total, 1):.1%} |"
        for name, one in ordered[:_SHOWN]
    ]
    left = sum(one.nanoseconds for _, one in ordered[_SHOWN:])
    if left:
        rows.append(
            f"| {len(ordered) - _SHOWN} others | | | {left / each / 1e6:.3f} | {left / total:.1%} |"
        )
    head = [
        f"{updates} updates, {total / each / 1e6:.3f} ms of operations in each. The trace",
        "beside this opens in TensorBoard's profiler, *.trace.json.gz also at ui.perfetto.dev.",
        "",
        "| operation | from | in an update | ms in an update | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows]) + "\n"


def _own_times(line: Any, module: str) -> list[tuple[str, float]]:
    """Name of each of a program's operations, and its nanoseconds without those inside it."""
    found: list[tuple[str, float]] = []
    open_until: list[tuple[float, int]] = []  # ends, and places in `found`
    operations = []
    for event in line.events:
        stats = dict(event.stats)
        # A TPU has a line for them, whose events have their names.
        name = event.name if line.name == "XLA Ops" else stats.get("hlo_op")
        if name and stats.get("hlo_module", module) == module:
            operations.append((event.start_ns, -event.duration_ns, name))
    for start, negative, name in sorted(operations):
        while open_until and open_until[-1][0] <= start:
            open_until.pop()
        if open_until:
            outer, own = found[open_until[-1][1]]
            found[open_until[-1][1]] = outer, own + negative
        open_until.append((start - negative, len(found)))
        found.append((name, -negative))
    return found
