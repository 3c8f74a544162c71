"""A profile of a stage: a trace of some updates for a viewer, and what took longest as tables."""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from daaa_jax.runtime import distributed, markers

SUMMARY = "summary.md"
_UPDATES = 20
_WARM_UP = 5  # updates before them
_SHOWN = 40  # lines of a table


@dataclasses.dataclass
class _Time:
    calls: int = 0
    nanoseconds: float = 0.0

    def add(self, calls: int, nanoseconds: float) -> None:
        self.calls += calls
        self.nanoseconds += nanoseconds


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
    """Tables of the step's parts and operations that took longest, as Markdown.

    Args:
      trace: a `ProfileData`.
      program: the text of the compiled step; other programs of the trace are left out.
      updates: that were traced.
      devices: that made them; the tables are of their mean.
    """
    module = program.removeprefix("HloModule ").split(",")[0].strip()
    where = places(program)
    operations: dict[str, _Time] = collections.defaultdict(_Time)
    for plane in trace.planes:
        for line in plane.lines:
            for name, duration in _own_times(line, module):
                operations[name].add(1, duration)
    if not operations:
        return f"{updates} updates. The trace beside this names no operations of the step.\n"
    parts: dict[str, _Time] = collections.defaultdict(_Time)
    for name, time in operations.items():
        parts[_part(where.get(name, ""))].add(time.calls, time.nanoseconds)
    each = updates * devices
    total = sum(time.nanoseconds for time in operations.values())
    head = [
        f"{updates} updates, {total / each / 1e6:.3f} ms of operations in each. The trace",
        "beside this opens in TensorBoard's profiler, *.trace.json.gz also at ui.perfetto.dev.",
        "`transpose(jvp(…))` is a network's backward pass, `jvp(…)` the forward pass before it.",
        "",
    ]
    named = {f"{name} | {where.get(name, '')}": time for name, time in operations.items()}
    by_part = _table("part | operations", parts, each)
    return "\n".join([*head, *by_part, "", *_table("operation | from | calls", named, each)]) + "\n"


def _part(place: str) -> str:
    """The layer of an operation, and whether it is of the backward pass."""
    return place.rpartition("/")[0] or "no layer"


def _table(head: str, times: Mapping[str, "_Time"], each: int) -> list[str]:
    total = sum(time.nanoseconds for time in times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1].nanoseconds)
    shown = [(name, f"{time.calls / each:g}", time) for name, time in ordered[:_SHOWN]]
    if others := ordered[_SHOWN:]:
        left = _Time(0, sum(time.nanoseconds for _, time in others))
        shown.append((f"{len(others)} others" + " |" * (head.count("|") - 1), "", left))
    return [
        f"| {head} in an update | ms in an update | share |",
        "| --- " * (head.count("|") + 3) + "|",
        *(
            f"| {name} | {calls} | {time.nanoseconds / each / 1e6:.3f} "
            f"| {time.nanoseconds / max(total, 1):.1%} |"
            for name, calls, time in shown
        ),
    ]


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
