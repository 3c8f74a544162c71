"""Moments of a run at which a fault can hit it: used by `benchmarks.faults`.

A run is watched by the files that it leaves in its working directory. It is the program that a user
runs, and no code of it knows that it is watched.
"""

import dataclasses
import functools
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.fault_runs import LONGEST, Command, Process
from daaa_jax.experiment.stages import STAGES
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime import metrics

START, TRAINING, SAVE, EVALUATION = PHASES = ("start-up", "training", "save", "evaluation")
END = "end"  # a target within the last evaluation, or what follows it
_POLL = 0.001  # seconds
_UNFINISHED_CHECKPOINT = ".orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a run has left in its working directory at one moment.

    Attributes:
      made: event files, checkpoints, translated parts, networks, markers: outputs after start-up.
      temporaries: files and checkpoints that are being written, or that a kill left.
      evaluating: whether a round's updates are made, and its metrics not written.
      last: identifies the file of the last network.
    """

    made: frozenset[str]
    temporaries: frozenset[str]
    evaluating: bool
    last: tuple[int, int] | None


def trace(workdir: Workdir) -> Trace:
    """Looks at a working directory; an empty trace if there is none."""
    made, temporaries = set(), set()
    for folder, folders, names in os.walk(workdir.path):
        # Orbax writes a checkpoint as a whole folder.
        whole = [name for name in folders if name.isdigit() or _UNFINISHED_CHECKPOINT in name]
        folders[:] = [name for name in folders if name not in whole]
        for name in (*names, *whole):
            path = os.path.relpath(os.path.join(folder, name), workdir.path)
            if name.endswith(".tmp") or _UNFINISHED_CHECKPOINT in name:
                temporaries.add(path)
            elif _is_output(path, name):
                made.add(path)
    return Trace(frozenset(made), frozenset(temporaries), _is_evaluating(workdir), _last(workdir))


def _is_output(path: str, name: str) -> bool:
    """Whether a file or folder is made after start-up."""
    return (
        name.isdigit()  # a checkpoint
        or name.startswith("part-")
        or name in ("finished.json", "result.json", "index.html")
        or name.endswith(".safetensors")
        or path.startswith("tensorboard")
    )


def _is_evaluating(workdir: Workdir) -> bool:
    """Whether the last line of metrics is of a round's last update of stage adapt."""
    if not workdir.config_json.exists():
        return False
    steps = workdir.config().adapt.round_steps
    lines = metrics.read(workdir.metrics_jsonl)[-1:]
    return any(
        line["stage"] == "adapt" and line["step"] % steps == 0 and "information" not in line
        for line in lines
    )


def _last(workdir: Workdir) -> tuple[int, int] | None:
    try:
        status = workdir.last_network.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def interrupted(workdir: Workdir, before: Trace, after: Trace) -> tuple[str, str]:
    """The stage and the phase that a process was in when a fault hit it.

    Args:
      before: before it was started.
      after: when the fault hit it. A temporary then proves that it was in a save.

    Returns:
      The evaluation of stage adapt includes what follows its last update, and the report; that of
      other stages counts as training.
    """
    rewritten = after.last is not None and after.last != before.last
    new = (after.made | after.temporaries) - (before.made | before.temporaries)
    progressed = bool(new) or rewritten
    left = sorted(
        path
        for path in after.temporaries
        # Opening the checkpoints removed those of earlier kills.
        if path not in before.temporaries or (progressed and _UNFINISHED_CHECKPOINT in path)
    )
    for path in left:
        if (stage := Path(path).parts[0]) in STAGES:
            return stage, SAVE
    stage = unfinished_stage(workdir)
    if not progressed:
        return stage, START
    return stage, EVALUATION if rewritten or after.evaluating else TRAINING


def unfinished_stage(workdir: Workdir) -> str:
    """The first stage that is not finished; the last one also while the report is written."""
    return next((s for s in STAGES[:-1] if not workdir.finished_json(s).exists()), STAGES[-1])


def saved(workdir: Workdir, stage: str) -> int:
    """Number of updates at the newest checkpoint of a stage; or of translated parts."""
    if stage == "translate":
        return sum(1 for _ in workdir.stage(stage).glob("*/part-*"))
    try:
        names = os.listdir(workdir.checkpoints(stage))
    except FileNotFoundError:
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)


def is_saving(workdir: Workdir, stage: str) -> bool:
    """Whether there is a temporary in the folder of a stage."""
    if stage == "translate":
        return any(workdir.stage(stage).glob("*/.part-*.tmp"))
    try:
        names = os.listdir(workdir.checkpoints(stage))
    except FileNotFoundError:
        return False
    return any(_UNFINISHED_CHECKPOINT in name for name in names)


@dataclasses.dataclass(frozen=True)
class Target:
    """A phase of a stage that a fault is to hit."""

    stage: str
    phase: str


# Of 20 faults, the most important first: the first n of them, over and over, are planned.
_TARGETS = (
    *(Target(stage, SAVE) for stage in STAGES),
    *(Target("adapt", EVALUATION), Target("pair", START)),
    *(Target(stage, SAVE) for stage in STAGES),
    *(Target(stage, TRAINING) for stage in ("pair", "source", "adapt")),
    *(Target("adapt", EVALUATION), Target("pair", TRAINING), Target("pair", TRAINING)),
    Target("adapt", TRAINING),
    *(Target(stage, START) for stage in STAGES[1:]),
)


def plan(count: int, chance: random.Random) -> list[Target]:
    """Targets of one run: stage by stage, evaluation last, otherwise in random order.

    The last one in an evaluation is moved to the end of the run, which is hit once, as another
    process may come to it too late.
    """
    targets = [_TARGETS[number % len(_TARGETS)] for number in range(count)]
    chance.shuffle(targets)
    targets.sort(key=lambda each: (STAGES.index(each.stage), each.phase == EVALUATION))
    if targets and targets[-1].phase == EVALUATION:
        targets[-1] = Target("adapt", END)
    return targets


@dataclasses.dataclass(frozen=True)
class Times:
    """How long the parts of a run take, in seconds.

    Attributes:
      start: from its start to its first update.
      saves: between two saves, by stage.
      end: from the last update to the end.
      whole: from its start to its end.
    """

    start: float
    saves: Mapping[str, float]
    end: float
    whole: float


def timed(command: Command) -> tuple[int, Times]:
    """Runs a command to its end without a fault; returns the exit code and the times."""
    process, clock = command.start(), time.monotonic()
    first, last, written = 0.0, 0.0, None
    changes: dict[str, list[tuple[float, int]]] = {stage: [] for stage in STAGES}
    while process.is_running():
        now, stage = time.monotonic() - clock, unfinished_stage(command.workdir)
        count = saved(command.workdir, stage)
        seen = changes[stage]
        if not seen or seen[-1][1] != count:
            seen.append((now, count))
        first = first or (now if any(command.workdir.tensorboard.glob("*/*")) else 0.0)
        if (network := _last(command.workdir)) != written:
            written, last = network, now
        time.sleep(0.01)
    whole = time.monotonic() - clock
    saves = {
        stage: (seen[-1][0] - seen[0][0]) / max(len(seen) - 1, 1) if seen else 0.0
        for stage, seen in changes.items()
    }
    return process.wait(), Times(first, saves, whole - last, whole)


def reach(
    process: Process, workdir: Workdir, target: Target, times: Times, chance: random.Random
) -> None:
    """Waits for a random moment of a phase, or until its stage is over.

    In training and saves, the process has made at least one save before, so that a run that is
    killed over and over comes to its end.
    """
    if target.phase == START:
        _wait(process, chance.uniform(0, times.start))
        return
    if target.phase == EVALUATION:
        before = _last(workdir)
        _wait(process, LONGEST, lambda: _last(workdir) != before)
        _wait(process, chance.uniform(0, 0.5 * times.saves["adapt"]))
        return
    if target.phase == END:
        adapt, finished = workdir.config().adapt, workdir.finished_json("adapt")
        updates = adapt.rounds * adapt.round_steps
        _wait(process, LONGEST, lambda: saved(workdir, "adapt") == updates or finished.exists())
        _wait(process, chance.uniform(0, 0.7 * times.end))
        return
    stage, last = target.stage, _last(workdir)

    def is_over() -> bool:
        later = STAGES.index(unfinished_stage(workdir)) > STAGES.index(stage)
        return later or _last(workdir) != last

    def has_saved(before: int) -> bool:
        return saved(workdir, stage) > before or is_over()

    for _ in range(chance.randint(1, 2)):
        _wait(process, LONGEST, functools.partial(has_saved, saved(workdir, stage)))
    if target.phase == TRAINING:
        _wait(process, chance.uniform(0, times.saves[stage]))
        _wait(process, LONGEST, lambda: not is_saving(workdir, stage) or is_over())
        return
    for delay in (0.0, chance.uniform(0, 0.05)):
        _wait(process, delay)
        _wait(process, LONGEST, lambda: is_saving(workdir, stage) or is_over())


def _wait(process: Process, seconds: float, condition: Callable[[], bool] = lambda: False) -> None:
    """Waits so long, or until a condition holds or the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_running() and not condition():
        time.sleep(_POLL)
