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

    def add(self, nanoseconds: float) -> None:
        self.calls += 1
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
    """Tables of the step's layers and operations that took longest, as Markdown.

    Args:
      trace: a `ProfileData`.
      program: the text of the compiled step; other programs of the trace are left out.
      updates: that were traced.
      devices: that made them; the tables are of their mean.
    """
    module = program.removeprefix("HloModule ").split(",")[0].strip()
    where = places(program)
    by_operation: dict[tuple[str, ...], _Time] = collections.defaultdict(_Time)
    by_layer: dict[tuple[str, ...], _Time] = collections.defaultdict(_Time)
    for plane in trace.planes:
        for line in plane.lines:
            for name, duration in _own_times(line, module):
                place = where.get(name, "")
                by_operation[name, place].add(duration)
                by_layer[(layer(place),)].add(duration)
    if not by_operation:
        return f"{updates} updates. The trace beside this names no operations of the step.\n"
    each = updates * devices
    total = sum(time.nanoseconds for time in by_operation.values())
    lines = [
        f"{updates} updates, {total / each / 1e6:.3f} ms of operations in each. The trace",
        "beside this opens in TensorBoard's profiler, *.trace.json.gz also at ui.perfetto.dev.",
        "",
        "`transpose(jvp(…))` is the backward pass of what is trained, `jvp(…)` the forward pass",
        "before it; without either, a network is not trained by what it computes. Networks of one",
        "kind share their lines, and operations that XLA has fused count where the last of them",
        "stands.",
        "",
        *_table(["layer"], by_layer, each),
        "",
        *_table(["operation", "from"], by_operation, each),
    ]
    return "\n".join(lines) + "\n"


def layer(place: str) -> str:
    """The path of layers that an operation is from, without what computes inside the last."""
    names = []
    for name in place.split("/")[:-1]:
        if re.search(r"\(\)|jit\(|^(while|cond|closed_call)$", name):
            break
        names.append(name)
    return "/".join(names) or "no layer"


def _table(head: list[str], times: Mapping[tuple[str, ...], _Time], each: int) -> list[str]:
    total = max(sum(time.nanoseconds for time in times.values()), 1)
    ordered = sorted(times.items(), key=lambda item: -item[1].nanoseconds)
    rows = [
        [*names, f"{time.calls / each:g}", f"{time.nanoseconds / each / 1e6:.3f}"]
        + [f"{time.nanoseconds / total:.1%}"]
        for names, time in ordered[:_SHOWN]
    ]
    if others := ordered[_SHOWN:]:
        left = sum(time.nanoseconds for _, time in others)
        blank = [""] * len(head)
        rows.append(
            [f"{len(others)} others", *blank, f"{left / each / 1e6:.3f}", f"{left / total:.1%}"]
        )
    head = [*head, "calls in an update", "ms in an update", "share"]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


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
