"""Saves the state of a stage to disk, and restores it bit for bit."""

import contextlib
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from daaa_jax.errors import UserError, first_line
from daaa_jax.runtime import device_memory, distributed

_SHOWN_MISMATCHES = 3
# Found in the messages of Orbax and its storage; later entries are more specific.
_DISK_ERRORS = (
    "Error writing",
    "Permission denied",
    "Read-only file system",
    "Disk quota exceeded",
    "No space left on device",
)


class Checkpoints(contextlib.AbstractContextManager):
    """Checkpoints of one stage, in one directory; only the newest is kept.

    A checkpoint holds a state (a tree of arrays) and the loop state (a dict of JSON values). It is
    written atomically: the remains of a killed save are removed when the directory is opened again.
    """

    def __init__(self, directory: str | Path):
        """Opens a directory of checkpoints, one for each stage, and creates it if needed."""
        # Imported here, as it takes most of a second and not every command needs checkpoints.
        import orbax.checkpoint as ocp

        self._args = ocp.args
        _leave_out_errors_that_are_also_raised()
        self.directory = Path(directory).absolute()
        # Orbax would remove these on a background thread, which prints a traceback if the command
        # ends before it does.
        if distributed.is_first():
            for unfinished in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        # A manager that has not saved yet cannot read a checkpoint's metadata.
        self._metadata_of = ocp.StandardCheckpointHandler().metadata
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        # At each save a manager asks JAX, with the stage's step, whether the run is preempted. JAX
        # keeps one counter for all callers, for which `preemption.Notice` counts differently.
        self._manager.reached_preemption = lambda step: False

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, even if it is still being written; None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, loop: dict[str, Any]) -> bool:
        """Starts a save in the background; the arrays may be donated as soon as this returns.

        A step that is not above the newest is skipped: a resumed run repeats steps that are saved
        already.

        Args:
          step: number of updates made.
          state: a tree of `jax.Array`.
          loop: the loop state, JSON values (tuples come back as lists).

        Returns:
          False if the step was skipped.
        """
        # A copy: the caller's lists may grow before the background thread writes them.
        loop = json.loads(json.dumps(loop))
        args = self._args
        items = args.Composite(state=args.StandardSave(state), loop=args.JsonSave(loop))
        with self._disk_errors_in_one_line():
            return self._manager.save(step, args=items)

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Restores the newest state and its loop state.

        Args:
          abstract_state: a tree of `jax.ShapeDtypeStruct` with shardings, placed as the restored
            state is to be. The devices may differ from those that the state was saved from.

        Returns:
          `(state, loop)` as they were saved.

        Raises:
          UserError: if there is no checkpoint, it cannot be read, or does not match; then the
            message names the leaf, the shape found and the shape expected.
        """
        self.wait()
        step = self.latest_step()
        if step is None:
            raise UserError(f"there is no checkpoint in {self.directory}")
        args = self._args
        items = args.Composite(state=args.StandardRestore(abstract_state), loop=args.JsonRestore())
        try:
            self._check_fit(step, abstract_state)
            restored = self._manager.restore(step, args=items)
        except UserError:
            raise
        except Exception as error:  # Orbax raises this base class for a damaged file
            if distributed.is_loss(error) or device_memory.is_full(error):
                raise
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be read ({first_line(error)}): "
                "check that the disk is readable; if the checkpoint is damaged, remove "
                f"{self.directory.parent} to run the stage again"
            ) from error
        return restored.state, restored.loop

    def wait(self) -> None:
        """Waits until every save is on disk; raises the error of a save that failed.

        Raises:
          UserError: if the disk is full or not writable.
        """
        with self._disk_errors_in_one_line():
            self._manager.wait_until_finished()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Waits as `wait` does, then closes the directory."""
        # A save that failed must not hide the error that ended the block.
        with contextlib.suppress(Exception) if error else self._disk_errors_in_one_line():
            self._manager.close()

    @contextlib.contextmanager
    def _disk_errors_in_one_line(self) -> Iterator[None]:
        """Replaces Orbax's disk errors, of hundreds of lines, by a `UserError`."""
        try:
            yield
        except Exception as error:
            reasons = [sign for sign in _DISK_ERRORS if sign in str(error)]
            if not reasons:
                raise
            raise UserError(
                f"a checkpoint cannot be written to {self.directory} ({reasons[-1].lower()}): free "
                "disk space or change the permissions, then rerun the same command to resume"
            ) from error

    def _check_fit(self, step: int, abstract_state: Any) -> None:
        found = leaves(self._metadata_of(self.directory / str(step) / "state").tree)
        expected = leaves(abstract_state)
        mismatches = [
            f"{name} is {found.get(name, 'absent')}, expected {expected.get(name, 'no such leaf')}"
            for name in [*expected, *(found.keys() - expected.keys())]
            if found.get(name) != expected.get(name)
        ]
        if mismatches:
            more = len(mismatches) - _SHOWN_MISMATCHES
            raise UserError(
                f"checkpoint {self.directory / str(step)} does not match the settings: "
                + "; ".join(mismatches[:_SHOWN_MISMATCHES])
                + (f"; and {more} more" if more > 0 else "")
            )


def _leave_out_errors_that_are_also_raised() -> None:
    """Keeps a save that fails from printing a traceback for each of its arrays.

    Orbax writes all arrays at once. It raises the error of the first, and closes the event loop
    that the others report to, or were still to be started by.
    """
    logging.getLogger("absl").addFilter(_is_not_also_raised)
    logging.getLogger("asyncio").addFilter(_is_not_of_another_array)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _ClosedLoopsIgnored):
        sys.unraisablehook = _ClosedLoopsIgnored(sys.unraisablehook)


def _is_not_also_raised(record: logging.LogRecord) -> bool:
    """False for Orbax's long log entries of exceptions, which it raises as well."""
    return not (record.exc_info and "orbax" in record.pathname)


def _is_not_of_another_array(record: logging.LogRecord) -> bool:
    """False for asyncio's log entries of disk errors that nobody waits for."""
    error = str(record.exc_info[1]) if record.exc_info else ""
    return not any(sign in error for sign in _DISK_ERRORS)


class _ClosedLoopsIgnored:
    """`sys.unraisablehook` that leaves out reports to a closed event loop."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)


def leaves(tree: Any) -> dict[str, str]:
    """Name → dtype and shape, such as `"params.conv1.kernel": "float32[3,3,3,32]"`."""
    names = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        names[name] = f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
    return names
