"""Runs in processes of their own, and how they end: used by `benchmarks.faults`."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from daaa_jax.experiment.workdir import Workdir

ROOT = Path(__file__).parent.parent
# A smoke run with a save every fourth update, parts of 32 images, and enough of both for 40 kills.
SMOKE = (
    "--config=configs/digits.py:smoke",
    "--config.run.reuse=none",
    "--config.run.log_every=1",
    "--config.run.checkpoint_every=4",
    "--config.pair.epochs=4",
    "--config.translate.part_size=32",
    "--config.source.epochs=8",
    "--config.adapt.rounds=28",
    "--config.evaluate.audit_images=60",
)
LONGEST = 900.0  # seconds after which a process is taken to hang
_BUGS = ("Traceback", "Exception ignored", "Exception in thread", "Fatal Python error")


class Process:
    """A started command; what it prints is appended to `<name>.out` and `<name>.err`."""

    def __init__(self, command: "Command"):
        """Starts the command."""
        self._error_log = command.logs / f"{command.name}.err"
        self._error_start = self._error_log.stat().st_size if self._error_log.exists() else 0
        with (
            (command.logs / f"{command.name}.out").open("ab") as out,
            self._error_log.open("ab") as errors,
        ):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daaa_jax.main", *command.arguments()],
                cwd=ROOT,
                env=command.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Sends SIGKILL, and waits for the end."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """The exit code, once it has ended; that of SIGKILL if it hangs."""
        try:
            return self._process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def errors(self) -> str:
        """What it has printed on standard error."""
        with self._error_log.open("rb") as file:
            file.seek(self._error_start)
            return file.read().decode(errors="replace")

    def last_line(self) -> str:
        """The last line that it has printed on standard error."""
        return (self.errors().rstrip("\n").splitlines() or ["no message"])[-1]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that trains in a working directory, and may be run again after a fault.

    Attributes:
      workdir: its working directory.
      flags: its other flags.
      caches: folder of compiled programs and decoded images.
      logs: folder for what it prints.
    """

    workdir: Workdir
    flags: tuple[str, ...]
    caches: Path
    logs: Path

    @property
    def name(self) -> str:
        """Name of its log files."""
        return self.workdir.path.name

    def arguments(self) -> list[str]:
        """All of its flags."""
        return [*self.flags, f"--workdir={self.workdir}"]

    def environment(self) -> dict[str, str]:
        """Variables of this process, with the caches."""
        return os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self.programs_cache()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "DAAA_CACHE": str(self.images_cache()),
        }

    def programs_cache(self) -> Path:
        """Folder of compiled programs."""
        return self.caches / "programs"

    def images_cache(self) -> Path:
        """Folder of decoded images."""
        return self.caches / "images"

    def start(self) -> Process:
        """Starts it."""
        self.logs.mkdir(parents=True, exist_ok=True)
        return Process(self)


@dataclasses.dataclass(frozen=True)
class Place:
    """The folder of a measurement, and the caches that its runs share."""

    folder: Path

    def command(self, name: str, *flags: str) -> Command:
        """A command with a working directory and logs of its own."""
        folder = self.folder / name
        return Command(Workdir(folder / "run"), flags, self.folder / "caches", logs=folder)

    def smoke(self, name: str, seed: int) -> Command:
        """The smoke run of a seed."""
        return self.command(name, *SMOKE, f"--config.seed={seed}")


def complaint(errors: str, *names: object) -> str:
    """Why standard error is not that of an expected failure; empty if it is.

    An expected failure ends with one line, `error: …`, followed by indented files where several are
    named.

    Args:
      errors: what a process printed on standard error.
      names: the line contains at least one of them.
    """
    lines = errors.rstrip("\n").splitlines()
    if bugs := [line for line in lines if any(bug in line for bug in _BUGS)]:
        return f"prints {bugs[0].strip()!r}"
    places = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if len(places) != 1:
        return f"prints {len(places)} lines of error, not one"
    line, *below = lines[places[0] :]
    if any(not each.startswith("  ") for each in below):
        return f"prints more below {line!r}"
    if names and not any(str(name) in line for name in names):
        return f"names none of {', '.join(map(str, names))}: {line!r}"
    return ""


def differences(workdir: Workdir, other: Workdir) -> list[str]:
    """Files of parameters that differ bit for bit between two runs, and accuracies that differ."""
    different = []
    for pick in (
        lambda each: each.generators,
        lambda each: each.source_network,
        lambda each: each.last_network,
        lambda each: each.selected_network,
    ):
        paths = [pick(workdir), pick(other)]
        if not all(path.is_file() for path in paths):
            different.append(f"{paths[0].name} missing")
        elif paths[0].read_bytes() != paths[1].read_bytes():
            different.append(str(paths[0].relative_to(workdir.path)))
    results = [each.result() or {} for each in (workdir, other)]
    if not all(results) or results[0]["accuracy"] != results[1]["accuracy"]:
        different.append("accuracies")
    return different
