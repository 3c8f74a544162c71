"""Runs the project's commands, many of them, without importing JAX for each anew.

One process imports what they need and forks for every call; it has computed nothing yet, so that a
fork is as good as a fresh start. Run as a program, this file is that process.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """One device, as on a user's machine."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {"JAX_PLATFORMS": "cpu"}


def fresh(
    module: str, *flags: object, timeout: float = 900, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Runs `python -m daaa_jax.<module>` in a process of its own, exactly as a user does.

    With `variables` in its environment.
    """
    return subprocess.run(
        [sys.executable, "-m", f"daaa_jax.{module}", *map(str, flags)],
        cwd=ROOT,
        env=environment() | (variables or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def call(
    module: str,
    *flags: object,
    variables: dict[str, str] | None = None,
    jax_settings: dict[str, object] | None = None,
    fails: str = "",
    is_read: bool = True,
) -> subprocess.CompletedProcess:
    """The same, forked.

    Args:
      variables: of the environment; too late for those that Python or JAX read when they start, but
        for the encoding of the output.
      jax_settings: by name; JAX would read them from the environment.
      fails: name of a function that raises an error, such as `pipeline.run`.
      is_read: whether the output has a reader; `… | true` has none.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "arguments": [f"daaa_jax.{module}", *map(str, flags)],
            "environment": environment() | (variables or {}),
            "folder": folder,
            "jax_settings": jax_settings or {},
            "fails": fails,
            "is_read": is_read,
        }
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        printed = [
            (Path(folder) / name).read_text(errors="replace") for name in ("stdout", "stderr")
        ]
    return subprocess.CompletedProcess(job["arguments"], code, *printed)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def two_processes(program: str, *arguments: object) -> list[str]:
    """What a program says as each of two processes, of two devices, that both succeed.

    Its arguments are the address of the first, the process's number, and the others.
    """
    address, two = free_address(), {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(number), *map(str, arguments)],
            cwd=ROOT,
            env=environment() | two,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return said


def refused(module: str, *flags: object) -> str:
    """What a call that cannot succeed ends with."""
    done = call(module, *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr[done.stderr.index("error: ") :].rstrip("\n")


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    for module in ("daaa_jax.pipeline", "daaa_jax.inference", "orbax.checkpoint", "tensorboardX"):
        __import__(module)
    for line in sys.stdin:
        job = json.loads(line)
        child = _fork()
        if not child:
            _run(job)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _fork() -> int:
    with warnings.catch_warnings():
        # JAX warns of its threads, of which there are none before its first computation.
        warnings.simplefilter("ignore", RuntimeWarning)
        return os.fork()


def _make_fail(function: str) -> None:
    def fail(*_, **__):
        raise RuntimeError("an injected failure\nof two lines")

    module, _, name = function.rpartition(".")
    setattr(importlib.import_module(f"daaa_jax.{module}"), name, fail)


def _run(job: dict) -> None:
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(job["folder"]) / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    if not job["is_read"]:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    encoding = os.environ.get("PYTHONIOENCODING")
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = os.fdopen(number, "w", buffering=1, closefd=False, encoding=encoding)
        setattr(sys, name, file)
    sys.argv = job["arguments"]
    for name, value in job["jax_settings"].items():
        sys.modules["jax"].config.update(name, value)
    if job["fails"]:
        _make_fail(job["fails"])
    tempfile.tempdir = None  # that of the environment
    code = 0
    try:
        runpy.run_module(job["arguments"][0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
