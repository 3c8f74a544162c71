"""Several processes as one run: how they connect, wait for each other, agree, and end together."""

import os
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from daaa_jax.errors import UserError, first_line
from daaa_jax.runtime import streams

# Exit codes, for launchers: 0 is finished and 1 needs a person to fix something. After any other
# code, this one in particular, the same command on every host resumes from the last checkpoint.
RESTART = 75
# Seconds without a heartbeat after which a process counts as dead, and all others end.
_HEARTBEAT = 30
_SHUTDOWN = 60
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_LONGEST_TEXT = 4096
# Prefixes of JAX's runtime errors that are not caused by the end of another process.
_NOT_A_LOSS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


class Unreached(Exception):
    """The other processes of a run did not connect in time."""


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects to the other processes of a run, if any; call it before JAX's first computation.

    On Cloud TPU, Slurm, Kubernetes (an indexed Job or JobSet) and Open MPI, JAX finds them by
    itself; elsewhere all arguments are required. With a single process nothing happens. From here
    on only process 0 writes to standard output.

    Args:
      coordinator: `HOST:PORT` of process 0; the port must be free.
      num_processes: number of processes.
      process_id: number of this process, from 0.

    Raises:
      UserError: if the arguments are incomplete or invalid.
      Unreached: if the other processes did not connect in time; another try may succeed.
    """
    if (coordinator, num_processes, process_id) != (None, None, None):
        _check(coordinator, num_processes, process_id)
        if num_processes == 1:
            return
    elif not in_cluster(os.environ):
        return
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except ValueError as error:
        raise UserError(
            f"the processes of this run cannot find each other ({first_line(error)}): say where "
            "they are by --coordinator, --num_processes and --process_id"
        ) from error
    except RuntimeError as error:
        raise Unreached(
            f"the processes of this run did not find each other ({first_line(error)}): make sure "
            "that the same command runs on every host, and start all of them again"
        ) from error
    if jax.process_index():
        sys.stdout = streams.open_null()


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if coordinator is None or num_processes is None or process_id is None:
        names = ("--coordinator", "--num_processes", "--process_id")
        given = zip(names, (coordinator, num_processes, process_id), strict=True)
        missing = [name for name, value in given if value is None]
        raise UserError(
            f"{', '.join(missing)} missing: --coordinator=HOST:PORT, --num_processes and "
            "--process_id go together"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator={coordinator} is not of the form HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to --num_processes less 1, "
            f"{num_processes - 1}"
        )


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of several, by environment variables."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    # JAX asks the cluster itself for the number of pods.
    in_pod = environment.keys() >= {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"}
    several = any(int(environment.get(name) or 1) > 1 for name in counts)
    return several or in_pod or len(_tpu_hosts(environment)) > 1


def _tpu_hosts(environment: Mapping[str, str]) -> list[str]:
    """The hosts of this machine's TPU slice; empty without a TPU."""
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):  # GKE
        if environment.get(name):
            return environment[name].split(",")
    if not (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()):
        return []
    request = urllib.request.Request(
        f"{_METADATA}worker-network-endpoints", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode().split(",")
    except OSError:
        return []


def started() -> bool:
    """Whether this process is one of several; initialises no device."""
    return jax.distributed.is_initialized()


def is_loss(error: Exception) -> bool:
    """Whether an error may be caused by the end of another process.

    An error that would recur, such as too little memory, is not: a person must fix it.
    """
    if not (started() and isinstance(error, jax.errors.JaxRuntimeError)):
        return False
    return not str(error).startswith(_NOT_A_LOSS)


def loss(error: Exception) -> str:
    """The message for an error of which `is_loss` is true."""
    return (
        f"process {jax.process_index()} has lost another one ({first_line(error)}): start all of "
        "them again to resume from the last checkpoint"
    )


def is_first() -> bool:
    """Whether this is process 0, which alone writes files that are the same for all.

    Initialises no device if there is only one process.
    """
    return not started() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def of_first(find: Callable[[], str]) -> str:
    """The result of `find` on process 0, sent to all processes.

    On a shared file system, other hosts may see a change later than process 0 does.

    Args:
      find: called on process 0 only; returns up to 4,096 bytes of text.
    """
    if jax.process_count() == 1:
        return find()
    content = os.fsencode(find()) if is_first() else b""
    if len(content) > _LONGEST_TEXT:
        raise ValueError(f"a text of {len(content)} bytes is too long for other processes")
    padded = np.frombuffer(content.ljust(_LONGEST_TEXT, b"\0"), np.uint8)
    # The broadcast is a sum over processes, which has a wider type.
    sent = np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8)
    return os.fsdecode(sent.tobytes().rstrip(b"\0"))


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same working directory, which must exist.

    Raises:
      UserError: on a process that does not see a folder made by process 0.
    """
    if jax.process_count() == 1:
        return
    token = folder / of_first(lambda: Path(tempfile.mkdtemp(prefix=".shared-", dir=folder)).name)
    seen = token.exists()
    barrier("token seen")
    if is_first():
        token.rmdir()
    if not seen:
        raise UserError(
            f"--workdir={folder} is not the same folder on every host: choose one on a file system "
            "that all hosts share"
        )


def end_at_once(code: int) -> None:
    """Ends this process without waiting for the others, which may never respond.

    They notice in the next collective operation, or by the missing heartbeat.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
