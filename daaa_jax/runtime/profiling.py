"""A profile of a stage: a trace of some updates for a viewer, and a summary by operation."""

import collections
import dataclasses
import re
from collections.abc import Iterable
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
    """Traces updates 6 to 25 of a stage, or of what is left of it, on the first process."""

    def __init__(self, folder: Path | None, start: int, steps: int):
        """Traces nothing yet.

        Args:
          folder: where the trace shall lie; None for no profile.
          start: updates made before.
          steps: of the stage.
        """
        self._folder = folder if distributed.is_first() else None
        self._first = min(start + 1 + _WARM_UP, max(steps, start + 1))
        self._last = min(self._first + _UPDATES - 1, steps)

    def before(self, step: int, state: Any) -> None:
        """Begins the trace if this update, counted from 1, is the first of it."""
        if self._folder is not None and step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)

    def after(self, step: int, state: Any, program: Any) -> None:
        """Ends it after the last, and writes the summary.

        Args:
          step: the update, counted from 1.
          state: after it.
          program: the compiled step, which says what its operations are for.
        """
        if self._folder is None or step != self._last:
            return
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        newest = max(self._folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        updates = self._last - self._first + 1
        text = summary(ProfileData.from_file(str(newest)), program.as_text(), updates)
        markers.write_bytes(self._folder / SUMMARY, text.encode())
        print(f"profile of {updates} updates in {self._folder}", flush=True)


def places(text: str) -> dict[str, str]:
    """Of a compiled program's operations by name, what in the code they come from.

    Args:
      text: of the program.
    """
    found = re.findall(r"%?([\w.-]+) = .*metadata=\{[^}]*op_name=\"([^\"]*)\"", text)
    return {name: re.sub(r"^jit\([^)]*\)/", "", place) for name, place in found}


def summary(trace: Any, program: str, updates: int) -> str:
    """A table of the operations of the step that took longest, as Markdown.

    Args:
      trace: a `ProfileData`.
      program: the text of the compiled step; other programs of the trace are left out.
      updates: that were traced.
    """
    module = program.removeprefix("HloModule ").split(",")[0].strip()
    where = places(program)
    operations: dict[str, _Operation] = collections.defaultdict(_Operation)
    for plane in trace.planes:
        for line in plane.lines:
            for name, duration in _own_times(line.events, module):
                operations[name].calls += 1
                operations[name].nanoseconds += duration
    total = sum(operation.nanoseconds for operation in operations.values())
    ordered = sorted(operations.items(), key=lambda item: -item[1].nanoseconds)
    rows = [
        f"| {name} | {where.get(name, '')} | {one.calls / updates:g} "
        f"| {one.nanoseconds / updates / 1e6:.3f} | {one.nanoseconds / max(total, 1):.1%} |"
        for name, one in ordered[:_SHOWN]
    ]
    left = sum(one.nanoseconds for _, one in ordered[_SHOWN:])
    if left:
        rows.append(
            f"| {len(ordered) - _SHOWN} others | | | {left / updates / 1e6:.3f} "
            f"| {left / total:.1%} |"
        )
    head = [
        f"{updates} updates, {total / updates / 1e6:.3f} ms of operations in each. The trace",
        "beside this opens in TensorBoard's profiler, *.trace.json.gz also at ui.perfetto.dev.",
        "",
        "| operation | from | in an update | ms in an update | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows]) + "\n"


def _own_times(events: Iterable[Any], module: str) -> list[tuple[str, float]]:
    """Name of each of a program's operations, and its nanoseconds without those inside it."""
    found: list[tuple[str, float]] = []
    open_until: list[tuple[float, int]] = []  # ends, and places in `found`
    of_line = [(event.start_ns, -event.duration_ns, dict(event.stats)) for event in events]
    operations = [
        (start, negative, stats["hlo_op"])
        for start, negative, stats in of_line
        if stats.get("hlo_module") == module and "hlo_op" in stats
    ]
    for start, negative, name in sorted(operations):
        while open_until and open_until[-1][0] <= start:
            open_until.pop()
        if open_until:
            outer, own = found[open_until[-1][1]]
            found[open_until[-1][1]] = outer, own + negative
        open_until.append((start - negative, len(found)))
        found.append((name, -negative))
    return found
