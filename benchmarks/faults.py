"""Counts of faults that runs bear: kills, a full disk, a second run, photos that change.

    python -m benchmarks.faults --workdir=DIR [--runs=5 --kills=40 --seed=0]

Smoke runs of the digits, in processes of their own. Some are killed by SIGKILL or meet a full disk,
over and over, and are resumed by the same command: they must end with the same parameters, bit for
bit, as runs of the same seeds without faults. A run that is started in the working directory of
another must be refused. Photos that change while they are read must not end in a traceback.

Prints tables of counts, and exits with code 1 and their names if expectations fail. A full disk
needs the right to mount a tmpfs: run as root, or after `unshare --map-root-user --mount`.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import fault_moments, fault_runs, small_disk
from benchmarks.changing_photos import DOMAINS, ChangingPhotos
from benchmarks.fault_moments import SAVE, Target, Times
from benchmarks.fault_outcomes import Outcome
from benchmarks.fault_runs import Command, Place
from daaa_jax.experiment.stages import STAGES
from daaa_jax.experiment.workdir import Workdir

_DISK_MIB = 96  # a smoke run leaves 11, with its caches 20
_PHOTOS = (
    "--config=configs/folder.py:smoke",
    "--stage=source",
    "--config.model.name=digits",
    "--config.data.limit=0",
    "--config.source.batch_size=64",
    "--config.source.epochs=1",
    "--config.run.reuse=none",
)
_CHANGED = "other settings or data"  # in the line that refuses a working directory of other data


@dataclasses.dataclass(frozen=True)
class Reference:
    """A run without faults: its seed, its working directory, how long its parts took."""

    seed: int
    workdir: Workdir
    times: Times


def reference(place: Place, seed: int) -> Reference:
    """Runs a seed without faults.

    Raises:
      SystemExit: if that fails.
    """
    command = place.smoke(f"reference-{seed}", seed)
    code, times = fault_moments.timed(command)
    if code:
        sys.exit(f"a run without faults ends with code {code}, see {command.logs}")
    return Reference(seed, command.workdir, times)


def first_reference(place: Place, seed: int) -> Reference:
    """The same for the first seed, after a run that compiles, whose parameters must be the same.

    Raises:
      SystemExit: if one fails, or they differ.
    """
    command = place.smoke("compiling", seed)
    if code := command.start().wait():
        sys.exit(f"a run without faults ends with code {code}, see {command.logs}")
    found = reference(place, seed)
    if different := fault_runs.differences(command.workdir, found.workdir):
        sys.exit(f"two runs without faults differ in {', '.join(different)}")
    return found


def kills(place: Place, whole: Reference, count: int) -> Outcome:
    """Kills a run so many times, each time resumed by the same command."""
    command = place.smoke(f"killed-{whole.seed}", whole.seed)
    outcome, chance = Outcome("killed in"), random.Random(whole.seed)
    for target in fault_moments.plan(count, chance):
        before = fault_moments.trace(command.workdir)
        process = command.start()
        fault_moments.reach(process, command.workdir, target, whole.times, chance)
        if outcome.has_ended(process, command, target):
            break
        process.kill()
        after = fault_moments.trace(command.workdir)
        outcome.counts[fault_moments.interrupted(command.workdir, before, after)] += 1
    outcome.finish(command, whole.workdir)
    return outcome


def check_saves(outcome: Outcome, runs: int, count: int) -> None:
    """Adds a failure for each stage whose saves were killed less than twice, if two were planned.

    Args:
      outcome: of all runs.
      runs: their number.
      count: number of kills of each.
    """
    planned = collections.Counter(fault_moments.plan(count, random.Random(0)))
    for stage in STAGES:
        if outcome.counts[stage, SAVE] < min(2, runs * planned[Target(stage, SAVE)]):
            outcome.failures.append(f"too few kills in saves of stage {stage}")


def fills(place: Place, whole: Reference, count: int) -> Outcome:
    """Fills the disk of a run so many times; it is emptied before the same command."""
    outcome, chance = Outcome("disk filled in"), random.Random(whole.seed)
    disk = place.folder / "disk"
    with small_disk.mounted(disk, _DISK_MIB):
        shutil.copytree(place.folder / "caches", disk / "caches")
        command = place.smoke("filled", whole.seed)
        command = dataclasses.replace(
            command, workdir=Workdir(disk / "run"), caches=disk / "caches"
        )
        for target in fault_moments.plan(count, chance):
            before = fault_moments.trace(command.workdir)
            process = command.start()
            fault_moments.reach(process, command.workdir, target, whole.times, chance)
            if outcome.has_ended(process, command, target):
                break
            now = fault_moments.trace(command.workdir)
            stage, phase = fault_moments.interrupted(command.workdir, before, now)
            with small_disk.filled(disk):
                outcome.count_end(f"{stage}, {phase}", process, command, disk)
        outcome.finish(command, whole.workdir)
    return outcome


def second_run(place: Place, whole: Reference, number: int) -> Outcome:
    """Starts a run in the working directory of another, which started a random time before.

    Every other one starts within the first run's start-up.
    """
    outcome, chance = Outcome("second run"), random.Random(f"{whole.seed} {number}")
    command = place.smoke(f"doubled-{number}", whole.seed)
    row, latest = (
        ("in the first's start-up", whole.times.start),
        ("at any time", whole.times.whole),
    )[number % 2]
    first = command.start()
    time.sleep(chance.uniform(0, latest))
    was_over = not first.is_running()
    second = dataclasses.replace(command, logs=command.logs / "second").start()
    codes = [process.wait() for process in (first, second)]
    if codes == [0, 0] or (was_over and not codes[1]):
        outcome.counts[row, "first was over"] += 1
    elif sorted(codes) == [0, 1]:
        refused = (first, second)[codes.index(1)]
        outcome.counts[row, "second refused" if refused is second else "first refused"] += 1
        if why := fault_runs.complaint(refused.errors(), command.workdir):
            outcome.failures.append(f"{command.workdir}: the refused run {why}")
    else:
        outcome.counts[row, "otherwise"] += 1
        outcome.failures.append(f"{command.workdir}: codes {codes}, see {command.logs}")
    outcome.finish(command, whole.workdir)
    return outcome


def photos_command(
    place: Place, name: str, on_error: str, seed: int
) -> tuple[Command, ChangingPhotos]:
    """A command that trains a source network on new photos, and the photos."""
    photos = ChangingPhotos(place.folder / name / "photos", seed)
    flags = [*_PHOTOS, f"--config.data.on_error={on_error}"]
    flags += [
        f"--config.data.{role}={photos.folder / domain}"
        for role, domain in zip(("source", "target"), DOMAINS, strict=True)
    ]
    return place.command(name, *flags), photos


def reading_times(place: Place) -> tuple[float, float]:
    """Seconds from a start until photos are decoded, and until they are read.

    Raises:
      SystemExit: if a run on photos that do not change fails.
    """
    for name in ("photos-compiling", "photos-reference"):
        command, _ = photos_command(place, name, "raise", seed=0)
        decoding, process, clock = 0.0, command.start(), time.monotonic()
        while process.is_running() and not command.workdir.config_json.exists():
            now = time.monotonic() - clock
            decoding = decoding or (now if any(command.images_cache().glob(".*.tmp")) else 0.0)
            time.sleep(0.01)
        done = time.monotonic() - clock
        if code := process.wait():
            sys.exit(f"photos that do not change end with code {code}, see {command.logs}")
    return decoding, done


def changed_photos(place: Place, times: tuple[float, float], seed: int, number: int) -> Outcome:
    """Changes photos from a random moment on, before or while a run reads them.

    When they are still, and whole again, the same command must finish: with another working
    directory if it is refused as the data changed. What it trains must not depend on the cache.

    Args:
      times: see `reading_times`.
    """
    outcome, chance = Outcome("photos change"), random.Random(f"{seed} {number}")
    on_error = ("raise", "skip")[number % 2]
    command, photos = photos_command(place, f"changed-{number}", on_error, number)
    process = command.start()
    time.sleep(chance.uniform(0.7 * times[0], times[1]))
    for _ in range(chance.randint(1, 60)):
        if process.is_running():
            photos.change()
            time.sleep(chance.uniform(0, 0.1))
    outcome.count_end(f"on_error={on_error}", process, command)
    photos.repair()
    process = command.start()
    if process.wait() and _CHANGED in process.errors():
        outcome.counts[f"on_error={on_error}", "then refused, as data changed"] += 1
        command = dataclasses.replace(command, workdir=Workdir(command.logs / "second"))
        process = command.start()
    caches = command.logs / "caches"
    shutil.copytree(command.programs_cache(), caches / command.programs_cache().name)
    fresh = dataclasses.replace(command, workdir=Workdir(command.logs / "fresh"), caches=caches)
    outcome.ended += 1
    if process.wait() or fresh.start().wait():
        outcome.failures.append(f"{command.workdir} does not finish: {process.last_line()}")
    elif not _is_same(command.workdir.source_network, fresh.workdir.source_network):
        outcome.failures.append(f"{command.workdir} differs from a run with an empty cache")
    else:
        outcome.same += 1
    return outcome


def _is_same(path: Path, other: Path) -> bool:
    return path.read_bytes() == other.read_bytes()


def measure(options: argparse.Namespace) -> Iterable[Outcome]:
    """Yields the outcome of each scenario whose number of faults is not zero."""
    place, seed = Place(Path(options.workdir).absolute()), options.seed
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:

        def all_of(scenario: Callable[[int], Outcome], count: int) -> Outcome:
            return functools.reduce(Outcome.__add__, pool.map(scenario, range(count)))

        if options.runs or options.fills or options.starts:
            first = first_reference(place, seed)
        if options.runs and options.kills:
            others = pool.map(
                functools.partial(reference, place), range(seed + 1, seed + options.runs)
            )
            wholes = [first, *others]
            killed = all_of(
                lambda number: kills(place, wholes[number], options.kills), options.runs
            )
            check_saves(killed, options.runs, options.kills)
            yield killed
        if options.fills:
            yield fills(place, first, options.fills)
        if options.starts:
            yield all_of(lambda number: second_run(place, first, number), options.starts)
        if options.changes:
            times = reading_times(place)
            yield all_of(lambda number: changed_photos(place, times, seed, number), options.changes)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="new folder for all that is written")
    parser.add_argument("--runs", type=int, default=5, help="runs that are killed")
    parser.add_argument("--kills", type=int, default=40, help="kills of each run")
    parser.add_argument("--fills", type=int, default=20, help="times that the disk is filled")
    parser.add_argument("--starts", type=int, default=10, help="second runs in one workdir")
    parser.add_argument("--changes", type=int, default=20, help="folders of photos that change")
    parser.add_argument("--seed", type=int, default=0, help="of the first run and of the faults")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    options = parser.parse_args()
    if Path(options.workdir).exists():
        parser.error(f"--workdir={options.workdir} exists: choose a new folder")
    if options.fills and not small_disk.can_be_mounted():
        parser.error(
            "--fills needs the right to mount a tmpfs, see --help; --fills=0 leaves it out"
        )
    started, failures = time.monotonic(), []
    for outcome in measure(options):
        print(f"{outcome.table()}\n", flush=True)
        failures += outcome.failures
    print(f"{(time.monotonic() - started) / 60:.0f} minutes")
    if failures:
        sys.exit("\n".join(["expectations that failed:", *failures]))


if __name__ == "__main__":
    main()
