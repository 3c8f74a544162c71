"""The one place that knows how a stage's state is kept on disk and brought back bit for bit."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from daaa_jax.errors import UserError
from daaa_jax.runtime import device_memory, distributed

_SHOWN_MISFITS = 3
# In what Orbax and its storage raise; the later says more.
_DISK_REFUSES = (
    "Error writing",
    "Permission denied",
    "Read-only file system",
    "Disk quota exceeded",
    "No space left on device",
)


def abstract(state: Any) -> Any:
    """Shape, dtype and sharding of every array of a state, without the arrays.

    Args:
      state: a tree of `jax.Array`, placed on the mesh that a restored state shall lie on.

    Returns:
      The same tree of `jax.ShapeDtypeStruct`, for `Checkpoints.restore`.
    """
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


class Checkpoints(contextlib.AbstractContextManager):
    """Checkpoints of one stage, in one directory, the newest kept.

    A checkpoint holds a state (a tree of arrays) and what the loop around it needs to go on (a
    dict that JSON can express). It exists whole or not at all: what a killed save has left is
    removed when the directory is opened again.
    """

    def __init__(self, directory: str | Path, keep: int = 1):
        """Opens, and makes if need be, a directory of checkpoints.

        Args:
          directory: where they lie.
          keep: how many of the newest are kept.
        """
        # Imported here, as Orbax takes most of a second that commands without a checkpoint spare.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        logging.getLogger("absl").addFilter(_is_not_raised_too)
        self.directory = Path(directory).absolute()
        # Orbax would do it on a thread of its own, which a command that ends at once outlives, and
        # which then shows a traceback.
        if distributed.is_first():
            for half in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half, ignore_errors=True)
        # Without a registry a manager that has not saved yet cannot describe what it finds.
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item, handler, save, restore in (
            (
                "state",
                ocp.StandardCheckpointHandler(),
                ocp.args.StandardSave,
                ocp.args.StandardRestore,
            ),
            ("loop", ocp.JsonCheckpointHandler(), ocp.args.JsonSave, ocp.args.JsonRestore),
        ):
            registry.add(item, save, handler)
            registry.add(item, restore, handler)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            handler_registry=registry,
        )
        # A manager asks JAX at each save whether the run is to end, by the stage's step. JAX keeps
        # one counter for all who ask, and `preemption.Notice` asks by another: it would be misled.
        self._manager.reached_preemption = lambda step: False

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, that of a save still under way included."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, loop: dict[str, Any]) -> bool:
        """Starts to save; the arrays may be donated as soon as this returns.

        A step that is not above the newest is skipped: a resumed run passes steps that an
        earlier one has saved already.

        Args:
          step: the number of updates made.
          state: a tree of `jax.Array`.
          loop: figures of the loop, as JSON has them (tuples come back as lists).

        Returns:
          Whether it was not skipped.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            return False
        # Written in the background, by when the caller's lists may have grown.
        loop = json.loads(json.dumps(loop))
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state), loop=self._ocp.args.JsonSave(loop)
        )
        with self._told_of_disk():
            return self._manager.save(step, args=args)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Brings back a state and its loop.

        Args:
          abstract_state: what to expect and where to put it, as `abstract` gives it. The devices
            need not be those it was saved from.
          step: which checkpoint, by default the newest.

        Returns:
          `(state, loop)` as they were saved.

        Raises:
          UserError: if there is no such checkpoint, it cannot be read, or does not fit: the
            message names the leaf, the shape found and the shape expected.
        """
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            which = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"there is no {which} in {self.directory}")
        try:
            self._check_fit(step, abstract_state)
            restored = self._manager.restore(
                step,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardRestore(abstract_state),
                    loop=self._ocp.args.JsonRestore(),
                ),
            )
        except UserError:
            raise
        except Exception as error:  # Orbax raises that very class on a damaged file
            if distributed.is_loss(error) or device_memory.is_full(error):
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be read ({reason[0][:200]}): make "
                f"sure that its disk can be read; if it is damaged, remove {self.directory.parent} "
                "to start the stage again"
            ) from error
        return restored.state, restored.loop

    def wait(self) -> None:
        """Returns when every save has reached the disk; raises what went wrong in one.

        Raises:
          UserError: if the disk is full, or may not be written.
        """
        with self._told_of_disk():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the directory; raises as `wait` does."""
        with self._told_of_disk():
            self._manager.close()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # A save that failed must not hide the error that ended the block.
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            self.close()

    @contextlib.contextmanager
    def _told_of_disk(self) -> Iterator[None]:
        """One line instead of the hundreds in which Orbax says that a disk takes no more."""
        try:
            yield
        except Exception as error:
            text = str(error)
            if not any(sign in text for sign in _DISK_REFUSES):
                raise
            reason = next(sign for sign in reversed(_DISK_REFUSES) if sign in text)
            raise UserError(
                f"a checkpoint cannot be written to {self.directory} ({reason.lower()}): make "
                "room, or see who may write there; the same command goes on from the last one"
            ) from error

    def _check_fit(self, step: int, abstract_state: Any) -> None:
        metadata = self._manager.item_metadata(step).state
        if metadata is None:
            raise ValueError("its state is missing")
        found = _leaves(metadata.tree)
        expected = _leaves(abstract_state)
        misfits = [
            f"{name} is {found.get(name, 'absent')}, expected {expected.get(name, 'no such leaf')}"
            for name in [*expected, *(found.keys() - expected.keys())]
            if found.get(name) != expected.get(name)
        ]
        if misfits:
            more = len(misfits) - _SHOWN_MISFITS
            raise UserError(
                f"checkpoint {self.directory / str(step)} does not fit the settings: "
                + "; ".join(misfits[:_SHOWN_MISFITS])
                + (f"; and {more} more" if more > 0 else "")
            )


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Whether a log says what nobody else does: Orbax logs, at length, what it raises as well."""
    return not (record.exc_info and "orbax" in record.pathname)


def _leaves(tree: Any) -> dict[str, str]:
    """Name → what it is, as in `"params.conv1.kernel": "float32[3,3,3,32]"`."""
    names = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        names[name] = f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
    return names
