"""Several processes as one run, over loopback: the same results, and they end together."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import commands
import jax
import numpy as np
import pytest

from configs import digits
from daaa_jax import pipeline
from daaa_jax.errors import UserError
from daaa_jax.runtime import distributed, exit_codes, preemption

# A GAN amplifies rounding: Adam moves a parameter whose gradient is only rounding as far as any
# other, and a ReLU or an absolute value is carried over its kink. With steps of 5e-5 the losses of
# two processes and of one differ by 1e-7 in the first step and by 1e-5 in the ninth. With smaller
# ones ten steps agree; test_devices checks that larger ones are the same too.
CONFIG = "configs/digits.py:smoke,pair.optimizer.learning_rate=1e-6,run.log_every=1"
STEPS = 10
METRICS = {
    "pair": ("loss", "adversarial", "cycle", "discriminator", "grad_norm"),
    "source": ("loss", "grad_norm"),
    "adapt": ("loss", "cross_entropy", "em", "alignment", "grad_norm"),
}
# For the CycleGAN's gradient norm, which rounding may change by so much, see test_devices.
GRADIENT_TOLERANCE = 1e-3
# Between a run of one process and one of several, whose CycleGANs differ; on 256 test images.
ACCURACY_TOLERANCE = 0.15
# Lines that the first process prints: the memory of a stage's step, the step from which a stage
# resumes, and the step after which a preempted stage is saved, which is no line of progress.
MEMORY = r"\b{stage}: .*\bMiB\b"
RESUMED = r"\badapt: [^\d\n]+{step}\b"
SAVED = r"(?m)^(?!adapt ).*\badapt\b[^\d\n]+{step}\b"


# Two processes of two devices. The second sleeps after `connect`; then the first thing they do
# together is a barrier, or the sums of a step.
LATE = """
import sys, time
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from daaa_jax.runtime import distributed, mesh as meshes
address, number, shards, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
distributed.start(address, 2, number)
mesh = meshes.data_mesh(shards=shards)
meshes.connect(mesh)
time.sleep(45 * number)
if first == "barrier":
    distributed.barrier("late")
numbers = np.arange(4.0)
specs = [PartitionSpec(mesh.axis_names), *map(PartitionSpec, mesh.axis_names)]
arrays = [meshes.place(numbers, NamedSharding(mesh, spec)) for spec in specs]
sums = jax.jit(lambda arrays: [a.sum() for a in arrays], out_shardings=meshes.replicated(mesh))
print("sums", *map(float, sums(arrays)), file=sys.stderr)
"""


class Run:
    """Processes of one run, each with its log."""

    def __init__(self, workdir: Path, processes: int, devices: int, *flags: str):
        address = commands.free_address()
        several = f"--xla_force_host_platform_device_count={devices}"
        self.logs = [workdir.with_suffix(f".{number}.log") for number in range(processes)]
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "daaa_jax.main", f"--config={CONFIG}"),
                    *(f"--workdir={workdir}", f"--coordinator={address}"),
                    *(f"--num_processes={processes}", f"--process_id={number}", *flags),
                ],
                cwd=commands.ROOT,
                env=commands.environment() | {"XLA_FLAGS": several},
                stdout=log.open("w"),
                stderr=subprocess.STDOUT,
            )
            for number, log in enumerate(self.logs)
        ]

    def codes(self, timeout: float = 900) -> list[int]:
        """Exit code of each; processes that have not ended by the timeout are killed."""
        try:
            end = time.monotonic() + timeout
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def output(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()}" for log in self.logs)


def run(workdir: Path, processes: int, devices: int, *flags: str) -> Run:
    started = Run(workdir, processes, devices, *flags)
    assert started.codes() == [0] * processes, started.output()
    return started


def lines_of(workdir: Path, stage: str) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [line for line in lines if line["stage"] == stage and "loss" in line]


def wait_for(workdir: Path, stage: str, step: int, started: Run | None = None) -> None:
    """Returns once a stage has logged a step."""
    for _ in range(9000):
        if any(line["step"] >= step for line in lines_of(workdir, stage)):
            return
        if started is not None:
            assert all(p.poll() is None for p in started.processes), started.output()
        time.sleep(0.1)
    raise AssertionError(f"{stage} has not reached step {step}")


def result_of(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    done = commands.call("main", f"--config={CONFIG}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def assert_ten_steps_agree(stage: str, one: Path, other: Path) -> None:
    ours, theirs = (lines_of(workdir, stage)[:STEPS] for workdir in (one, other))
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for name in METRICS[stage]:
        # Rounding grows from step to step: on a CPU without AVX-512 a loss is off by 3e-5 at the
        # tenth, where a wrong mean or a wrong batch would show at the first two.
        for steps, rtol in ((STEPS // 2, 1e-5), (STEPS, 1e-4)):
            if (stage, name) == ("pair", "grad_norm"):
                rtol = max(rtol, GRADIENT_TOLERANCE)
            np.testing.assert_allclose(
                [line[name] for line in theirs[:steps]],
                [line[name] for line in ours[:steps]],
                rtol,
                err_msg=name,
            )


def assert_same_run(workdir: Path, alone: Path, processes: int, devices: int) -> None:
    """A whole run from the start, then stage `adapt` on the outputs of the lone process."""
    started = run(workdir, processes, devices, "--config.run.reuse=none")
    for stage in ("pair", "source"):
        assert_ten_steps_agree(stage, alone, workdir)
    first, *others = (log.read_text() for log in started.logs)
    assert "(last)" in first and re.search(MEMORY.format(stage="pair"), first)
    assert not any("(last)" in log or re.search(MEMORY.format(stage="pair"), log) for log in others)
    ours, theirs = (result_of(w)["accuracy"]["target_test"]["last"] for w in (alone, workdir))
    assert abs(ours - theirs) < ACCURACY_TOLERANCE
    adapted = workdir.with_name("adapted")
    run(adapted, processes, devices, f"--config.run.reuse={alone}")
    # Nothing is trained there: of both stages, only the generators are copied.
    assert [path.name for path in (adapted / "pair").iterdir()] == ["generators.safetensors"]
    assert not (adapted / "source").exists()
    assert_ten_steps_agree("adapt", alone, adapted)


def test_two_processes_of_two_devices_train_one_source_network(tmp_path):
    flags = ("--stage=source", "--config.run.reuse=none")
    alone = tmp_path / "alone"
    done = commands.call("main", f"--config={CONFIG}", f"--workdir={alone}", *flags)
    assert done.returncode == 0, done.stderr
    started = run(tmp_path / "run", 2, 2, *flags)
    assert_ten_steps_agree("source", alone, tmp_path / "run")
    logs = [log.read_text() for log in started.logs]
    assert [bool(re.search(MEMORY.format(stage="source"), log)) for log in logs] == [True, False]


def test_devices_meet_before_anything_is_loaded(monkeypatch, tmp_path):
    def load(data):
        done.append("load")
        raise UserError("far enough")

    done = []
    monkeypatch.setattr(pipeline.meshes, "connect", lambda mesh: done.append("connect"))
    monkeypatch.setattr(pipeline, "load_task", load)
    with pytest.raises(UserError, match="far enough"):
        pipeline.run(digits.get_config("smoke"), tmp_path / "run")
    assert done == ["connect", "load"]


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "first"), [(1, "step"), (2, "step"), (1, "barrier")])
def test_processes_wait_for_a_late_one(shards, first):
    """For longer than the 30 seconds that Gloo gives devices to meet."""
    outputs = commands.two_processes(LATE, shards, first)
    assert all("sums" + " 6.0" * (shards + 1) in text for text in outputs), "\n".join(outputs)


@pytest.mark.slow
def test_two_processes_of_two_devices_run_as_one(alone, tmp_path):
    assert_same_run(tmp_path / "run", alone, 2, 2)


@pytest.mark.slow
def test_four_processes_run_as_one(alone, tmp_path):
    assert_same_run(tmp_path / "run", alone, 4, 1)


@pytest.mark.slow
def test_two_processes_that_share_parameters_run_as_one(alone, tmp_path):
    run(tmp_path / "run", 2, 2, "--config.run.reuse=none", "--config.run.parameter_shards=2")
    for stage in ("pair", "source"):
        assert_ten_steps_agree(stage, alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [((4, 1), (1, 1)), ((1, 4), (4, 1))])
def test_run_resumes_with_another_number_of_processes(before, after, alone, tmp_path):
    """Preempted in the middle of adaptation, all save the same step; others resume from it."""
    workdir, reuse = tmp_path / "run", f"--config.run.reuse={alone}"
    started = Run(workdir, *before, reuse)
    wait_for(workdir, "adapt", 5, started)
    started.processes[-1].send_signal(signal.SIGTERM)
    assert set(started.codes()) == {distributed.RESTART}, started.output()
    (saved,) = (path.name for path in (workdir / "adapt/checkpoints").iterdir())
    assert re.search(SAVED.format(step=saved), started.output())
    again = run(workdir, *after, reuse)
    assert re.search(RESUMED.format(step=saved), again.output()) or int(saved) == 24
    lines, theirs = lines_of(alone, "adapt"), lines_of(workdir, "adapt")
    assert [line["step"] for line in theirs] == [line["step"] for line in lines]
    np.testing.assert_allclose(
        [line["loss"] for line in theirs], [line["loss"] for line in lines], rtol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_dies_ends_the_others_within_a_minute_and_nothing_is_lost(
    victim, alone, tmp_path
):
    workdir, reuse = tmp_path / "run", f"--config.run.reuse={alone}"
    started = Run(workdir, 2, 1, reuse, "--config.adapt.rounds=200")
    wait_for(workdir, "adapt", 20, started)
    started.processes[victim].kill()
    killed = time.monotonic()
    code = started.processes[1 - victim].wait(120)
    assert time.monotonic() - killed < 60
    assert code not in (0, 1)
    log = started.logs[1 - victim].read_text()
    # Our message names the process; else JAX has ended it with its own.
    ours = re.search(rf"^error: .*\bprocess {1 - victim}\b", log, re.MULTILINE)
    assert ours or "distributed service detected fatal errors" in log
    saved = max(int(p.name) for p in (workdir / "adapt/checkpoints").iterdir() if p.name.isdigit())
    again = Run(workdir, 2, 1, reuse, "--config.adapt.rounds=200")
    wait_for(workdir, "adapt", lines_of(workdir, "adapt")[-1]["step"] + 1, again)
    for process in again.processes:
        process.kill()
    assert re.search(RESUMED.format(step=saved), again.logs[0].read_text())


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_ends_with_the_same_parameters(alone, tmp_path):
    command = [sys.executable, "-m", "daaa_jax.main", f"--config={CONFIG}"]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.run.reuse={alone}"]
    with subprocess.Popen(
        command,
        cwd=commands.ROOT,
        env=commands.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(tmp_path / "run", "adapt", 3)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=300)
    assert process.returncode == distributed.RESTART == 75
    (saved,) = (path.name for path in (tmp_path / "run/adapt/checkpoints").iterdir())
    assert re.search(SAVED.format(step=saved), log) and "Traceback" not in log
    done = commands.call("main", *command[3:])
    assert done.returncode == 0 and re.search(RESUMED.format(step=saved), done.stderr)
    marker, expected = (
        json.loads((workdir / "adapt/finished.json").read_text())
        for workdir in (tmp_path / "run", alone)
    )
    assert marker["extra"]["sha256"] == expected["extra"]["sha256"]


# How processes find each other


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, False),  # in the batch script itself
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a lone pod, a notebook
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_launchers_are_recognised_by_what_they_set(environment, several):
    assert distributed.in_cluster(environment) == several


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("host:1", None, None), ["--num_processes", "--process_id"]),
        ((None, 2, 0), ["--coordinator"]),
        (("host", 2, 0), ["--coordinator=host", "HOST:PORT"]),
        (("host:port", 2, 0), ["--coordinator=host:port", "HOST:PORT"]),
        (("host:1", 2, 2), ["--process_id=2", "--num_processes"]),
        (("host:1", 2, -1), ["--process_id=-1", "--num_processes"]),
    ],
)
def test_invalid_or_incomplete_flags_are_refused(arguments, names):
    with pytest.raises(UserError) as caught:
        distributed.start(*arguments)
    assert all(name in str(caught.value) for name in names)


def test_single_process_starts_nothing_and_is_the_first(tmp_path):
    distributed.start()
    distributed.start("localhost:1", 1, 0)
    assert not distributed.started() and distributed.is_first()
    assert distributed.of_first(lambda: "what it has found") == "what it has found"
    distributed.barrier("nothing to wait for")
    distributed.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes", False),
        ("INVALID_ARGUMENT: Argument does not match host shape", False),
    ],
)
def test_error_that_would_occur_again_is_not_a_lost_process(monkeypatch, message, lost):
    error = jax.errors.JaxRuntimeError(message)
    assert not distributed.is_loss(error)  # there is no other process
    monkeypatch.setattr(distributed, "started", lambda: True)
    assert distributed.is_loss(error) == lost
    assert not distributed.is_loss(ValueError(message))


@pytest.mark.parametrize(
    ("error", "code", "names"),
    [
        (RuntimeError("timed out"), distributed.RESTART, []),
        (ValueError("no port"), 1, ["--coordinator", "--num_processes", "--process_id"]),
    ],
)
def test_late_processes_are_retried_and_missing_flags_are_not(
    monkeypatch, capsys, error, code, names
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(SystemExit) as ended:
        exit_codes.run(lambda: distributed.start("localhost:1", 2, 0))
    assert ended.value.code == code
    line = capsys.readouterr().err
    assert all(name in line for name in (*names, str(error))) and line.count("\n") == 1


def test_ctrl_c_prints_one_line_and_ends_by_the_signal():
    program = (
        "from daaa_jax.runtime import exit_codes\n"
        "def interrupt():\n"
        "    raise KeyboardInterrupt\n"
        "exit_codes.run(interrupt)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_outer_notice_hears_what_an_inner_one_hears():
    with preemption.Notice().listening() as outer, preemption.Notice().listening() as inner:
        assert not inner.heard()
        os.kill(os.getpid(), signal.SIGTERM)
        assert inner.heard() and inner.after_update() and outer.heard()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_inner_notice_has_heard_what_the_outer_one_heard_before():
    with preemption.Notice().listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with preemption.Notice().listening() as inner:
            assert inner.heard()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends the process
    with preemption.Notice().listening() as later:
        assert not later.heard()


def test_notice_hears_the_first_sigterm_and_leaves_the_second_to_others():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("by others"))
    try:
        with preemption.Notice().listening() as notice:
            assert not notice.heard() and not notice.after_update()
            os.kill(os.getpid(), signal.SIGTERM)
            assert notice.heard() and notice.after_update() and not heard
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == ["by others"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_notice_on_another_thread_hears_nothing():
    def listen():
        with preemption.Notice().listening() as notice:
            found.append(notice.heard())

    found = []
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False]
