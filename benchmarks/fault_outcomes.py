"""What a scenario of `benchmarks.faults` counts."""

import collections
import dataclasses
from collections.abc import Iterable

from benchmarks import fault_runs
from benchmarks.fault_moments import PHASES, Target
from benchmarks.fault_runs import Command, Process
from daaa_jax.experiment.stages import STAGES
from daaa_jax.experiment.workdir import Workdir

_ENDS = ("finished", "one line", "second refused", "first refused", "first was over", "otherwise")


@dataclasses.dataclass
class Outcome:
    """What a scenario counted.

    Attributes:
      name: its title.
      counts: by a row's and a column's name.
      ended: runs that went on to their end after the faults.
      same: those among them with the same parameters as without faults.
      failures: expectations that failed.
    """

    name: str
    counts: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )
    ended: int = 0
    same: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)

    def __add__(self, other: "Outcome") -> "Outcome":
        """Both together."""
        return Outcome(
            self.name,
            self.counts + other.counts,
            self.ended + other.ended,
            self.same + other.same,
            self.failures + other.failures,
        )

    def table(self) -> str:
        """The counts, in Markdown."""
        rows = _in_order((row for row, _ in self.counts), STAGES)
        columns = _in_order((column for _, column in self.counts), (*PHASES, *_ENDS))
        lines = [[self.name, *columns], ["---"] * (1 + len(columns))]
        lines += [[row, *(str(self.counts[row, each]) for each in columns)] for row in rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"{table}\n\nSame parameters afterwards: {self.same} of {self.ended} runs."

    def finish(self, command: Command, whole: Workdir) -> None:
        """Runs a command to its end, and compares it with a run without faults."""
        process = command.start()
        self.ended += 1
        if code := process.wait():
            self.failures.append(f"{command.workdir} ends with code {code}: {process.last_line()}")
        elif different := fault_runs.differences(command.workdir, whole):
            self.failures.append(f"{command.workdir} differs in {', '.join(different)}")
        else:
            self.same += 1

    def has_ended(self, process: Process, command: Command, target: Target) -> bool:
        """Whether a process has ended before a fault, which is a failure."""
        if process.is_running():
            return False
        self.failures.append(
            f"{command.workdir} ends before a fault in {target.stage}, {target.phase}: code "
            f"{process.wait()}, {process.last_line()}"
        )
        return True

    def count_end(self, row: str, process: Process, command: Command, *names: object) -> None:
        """Counts how a process that met a fault has ended: well, with one line, or otherwise."""
        code = process.wait()
        why = fault_runs.complaint(process.errors(), *names) if code else ""
        if code not in (0, 1):
            why = why or "another code than 1"
        how = "one line" if code else "finished"
        self.counts[row, "otherwise" if why else how] += 1
        if why:
            self.failures.append(f"{row}: code {code}, {why}; see {command.logs}")


def _in_order(names: Iterable[str], known: tuple[str, ...]) -> list[str]:
    found = list(dict.fromkeys(names))
    return sorted(found, key=lambda name: known.index(name) if name in known else len(known))
