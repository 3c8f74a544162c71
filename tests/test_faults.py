"""The benchmark of faults knows where a fault hit, and what an expected failure looks like."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import commands
import pytest

from benchmarks import fault_moments, small_disk
from benchmarks.changing_photos import CLASSES, DOMAINS, ChangingPhotos
from benchmarks.fault_moments import END, EVALUATION, SAVE, START, TRAINING
from benchmarks.fault_runs import complaint
from daaa_jax.data import photos
from daaa_jax.experiment.stages import STAGES
from daaa_jax.experiment.workdir import Workdir

mountable = pytest.mark.skipif(not small_disk.can_be_mounted(), reason="a disk cannot be mounted")


def make(workdir: Workdir, *names: str) -> None:
    """Writes files; a name that ends in a slash is a folder."""
    for name in names:
        path = workdir.path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ((), (), ("pair", START)),
        ((), ("tensorboard/pair/events",), ("pair", TRAINING)),
        ((), ("tensorboard/pair/events", "pair/checkpoints/2/"), ("pair", TRAINING)),
        ((), ("pair/checkpoints/4.orbax-checkpoint-tmp/",), ("pair", SAVE)),
        (("pair/checkpoints/4.orbax-checkpoint-tmp/",), (), ("pair", START)),
        (
            ("source/checkpoints/4.orbax-checkpoint-tmp/", "pair/finished.json"),
            ("tensorboard/source/second",),
            ("source", SAVE),  # an earlier remainder would have been removed
        ),
        (("pair/finished.json",), (), ("translate", START)),
        (("pair/finished.json",), ("translate/a_to_b/part-0",), ("translate", TRAINING)),
        (("pair/finished.json",), ("translate/a_to_b/.part-1.ab.tmp",), ("translate", SAVE)),
        (
            [f"{stage}/finished.json" for stage in STAGES[:-1]],
            ("adapt/last.safetensors",),
            ("adapt", EVALUATION),
        ),
        (
            [*(f"{stage}/finished.json" for stage in STAGES[:-1]), "adapt/last.safetensors"],
            ("adapt/last.safetensors",),  # written again
            ("adapt", EVALUATION),
        ),
    ],
)
def test_moment_of_a_fault_is_seen_from_what_a_run_has_left(before, after, found, tmp_path):
    workdir = Workdir(tmp_path)
    make(workdir, *before)
    then = fault_moments.trace(workdir)
    make(workdir, *after)
    now = fault_moments.trace(workdir)
    assert fault_moments.interrupted(workdir, then, now) == found


@pytest.mark.parametrize("step", [8, 9])
def test_last_update_of_a_round_is_followed_by_its_evaluation(step, tmp_path):
    workdir = Workdir(tmp_path)
    make(workdir, *(f"{stage}/finished.json" for stage in STAGES[:-1]))
    then = fault_moments.trace(workdir)
    make(workdir, "tensorboard/adapt/events")
    workdir.config_json.write_text(json.dumps({"config": {"adapt": {"round_steps": 8}}}))
    workdir.metrics_jsonl.write_text(json.dumps({"stage": "adapt", "step": step}) + "\n")
    phase = fault_moments.interrupted(workdir, then, fault_moments.trace(workdir))[1]
    assert phase == (EVALUATION if step == 8 else TRAINING)


def test_faults_are_planned_in_the_order_of_stages_with_two_in_the_saves_of_each():
    plan = fault_moments.plan(10, random.Random(0))
    assert [each.stage for each in plan] == sorted((t.stage for t in plan), key=STAGES.index)
    assert Counter(each.stage for each in plan if each.phase == SAVE) == dict.fromkeys(STAGES, 2)
    assert [target.phase for target in plan].count(END) == 1 and plan[-1].phase == END


LINE = "error: /disk/a.json: no space left on device\n"


@pytest.mark.parametrize(
    ("errors", "is_expected"),
    [
        (LINE, True),
        ("pair 1/2\n" + LINE, True),
        ("error: /disk has 2 bad images\n  /disk/1.jpg: cut\n  /disk/2.jpg: cut\n", True),
        ("", False),
        ("pair 1/2\n", False),
        (LINE + LINE, False),
        (LINE + "and more\n", False),
        ("error: a file: no space left on device\n", False),
        ("Traceback (most recent call last):\n" + LINE, False),
        ("Exception ignored in: <function>\n" + LINE, False),
    ],
)
def test_expected_failure_is_one_line_that_names_the_place(errors, is_expected):
    assert (complaint(errors, Path("/disk")) == "") == is_expected


@mountable
def test_filled_disk_stays_full_until_the_block_ends(tmp_path):
    disk = tmp_path / "disk"
    with small_disk.mounted(disk, mib=2):
        (disk / "old").write_bytes(bytes(2**20))
        with small_disk.filled(disk), (disk / "new").open("wb", buffering=0) as file:
            (disk / "old").unlink()
            while os.statvfs(disk).f_bavail:
                time.sleep(0.001)
            with pytest.raises(OSError, match="No space left"):
                file.write(bytes(4096))
        (disk / "new").write_bytes(bytes(2**20))
    assert list(disk.iterdir()) == []


def test_photos_change_and_are_whole_again(tmp_path):
    changing = ChangingPhotos(tmp_path / "photos", seed=0, each=25)
    for _ in range(60):
        changing.change()
    assert min(changing.changes.values()) > 0

    def damaged() -> int:
        paths = (tmp_path / "photos").glob("*/*/*.jpg")
        return sum(isinstance(photos.try_read(path, 8), str) for path in paths)

    assert damaged() > 0
    changing.repair()
    assert damaged() == 0
    assert {path.name for path in (tmp_path / "photos").glob("*/*")} == set(CLASSES)
    assert {path.name for path in (tmp_path / "photos").iterdir()} == set(DOMAINS)


@pytest.mark.slow
@mountable
def test_few_faults_are_borne(tmp_path):
    counts = ("--runs=1", "--kills=5", "--fills=2", "--starts=1", "--changes=0")
    command = [sys.executable, "-m", "benchmarks.faults", f"--workdir={tmp_path / 'faults'}"]
    done = subprocess.run(
        [*command, *counts],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Same parameters afterwards: 1 of 1 runs.") == 3
