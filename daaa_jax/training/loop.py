"""The training loop of all stages, which can be resumed after a kill at any moment."""

import math
import sys
import time
import zlib
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any, TypeVar

import jax
import numpy as np
from clu.metrics import Average
from jax.sharding import Mesh

from daaa_jax.errors import Diverged, UserError
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime import device_memory, distributed, files
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.checkpoints import Checkpoints, leaves
from daaa_jax.runtime.preemption import Preempted
from daaa_jax.runtime.profiling import Profile
from daaa_jax.runtime.progress import Progress
from daaa_jax.training.context import Context
from daaa_jax.training.feed import Feed

# Updates in one dispatch, of states of at most so many bytes.
_BLOCK, _SMALL_STATE = 25, 64 * 2**20

State = TypeVar("State")
Metrics = Mapping[str, Average]
LoopState = MutableMapping[str, Any]


def stage_key(seed: int, name: str) -> jax.Array:
    """The PRNG key of a stage, independent of those of other stages and seeds."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def mean(values: jax.Array) -> Average:
    """A metric of one step as a (sum, count) pair, which averages groups of any size correctly."""
    return Average(total=values.sum(), count=jax.numpy.float32(values.size))


def run(
    name: str,
    create_state: Callable[[], State],
    train_step: Callable[[State, Any], tuple[State, Metrics]],
    feed: Feed,
    *,
    images: int,
    round_steps: int,
    end_of_round: Callable[[int, State, Metrics, LoopState], Mapping[str, float]],
    context: Context,
    between_rounds: Callable[[int, State, LoopState], State] = lambda step, state, kept: state,
    shardings: Callable[[Any, Mesh], Any] = meshes.state_shardings,
    reduce: str = "the batch size",
    quiet: Collection[str] = (),
) -> tuple[State, LoopState]:
    """Trains one stage to its end, from its last checkpoint if it has one.

    After an update that ends a logging interval, a saving interval or a round:

    1. the metrics since the last such point are fetched and must be finite, so that no checkpoint
       holds a diverged state;
    2. they are written, and added to the round's sums;
    3. at the end of a round, `between_rounds` may change the state, `end_of_round` evaluates, and
       its metrics are written;
    4. at the end of a saving interval or a round, the state and the loop state are saved. Metrics
       written after the last save are removed when the run resumes, and are written again;
    5. if the run is preempted, which counts as the end of a saving interval, it ends.

    Args:
      name: of the stage, and of its folder in the working directory.
      create_state: makes the initial state; if a checkpoint is restored, only its shapes are used.
      train_step: `(state, batch) -> (state, metrics)`; compiled here, donating the state.
      feed: the batches of all updates.
      images: number of images of an update, to report the throughput.
      round_steps: number of updates between two calls of `end_of_round`, which is also called
        after the last update.
      end_of_round: `(step, state, round_metrics, loop_state) -> metrics`; it may store JSON values
        in the loop state, which is saved with the state.
      between_rounds: `(step, state, loop_state) -> state`, called before `end_of_round`; arrays
        that it replaces are placed like those before.
      shardings: `(shapes, mesh) -> shardings` of the state.
      reduce: the settings that reduce a step's memory, for an error message.
      quiet: metrics of `end_of_round` that are left out of the round's log line.

    Returns:
      The final state, and the loop state with `seconds` and `device_seconds` (of all starts of the
      stage together), `images` (of all updates), `step_bytes` (memory of a step on each device) and
      `sha256` of the final state.

    Raises:
      Diverged: if a metric is not finite.
      TypeError: see `check_types`.
      UserError: if the devices run out of memory, or the last checkpoint of a finished stage is
        missing.
      Preempted: if the run is preempted, after saving.
    """
    writer, steps = context.writer, feed.steps
    with Checkpoints(context.workdir.checkpoints(name)) as checkpoints:
        start = _last_saved(checkpoints, context.workdir, name, steps)
        places = shardings(jax.eval_shape(create_state), context.mesh)
        with device_memory.enough_memory(f"stage {name}", reduce):
            state, loop_state = _first_state(create_state, places, start, checkpoints)
        length = 1 if feed.streams else _block_length(context, state)
        update = _Updates(name, train_step, feed, places, context.mesh, length, reduce)
        intervals = round_steps, context.settings.log_every, context.settings.checkpoint_every
        sums = _MetricSums(loop_state)
        writer.drop_after(name, start)
        with (
            device_memory.enough_memory(f"stage {name}", reduce),
            Progress(name, steps, start) as progress,
            Profile(context.trace(name), start, steps, round_steps, progress.line) as profile,
        ):
            clock, step = time.monotonic(), start
            while step < steps:
                profile.before(step + 1, state)
                count = _dispatched(step, length, intervals, steps)
                state, metrics = update(state, step, count)
                step += count
                profile.after(step, state)
                sums.add(metrics)
                ends_round = step % round_steps == 0 or step == steps
                preempted = context.notice.after_update()
                saves = ends_round or preempted or step % context.settings.checkpoint_every == 0
                if not (saves or step % context.settings.log_every == 0):
                    continue
                averages = _finite(name, step, sums.end_interval(), checkpoints)
                writer.scalars(name, step, averages)
                progress.update(step, averages)
                if ends_round:
                    state = between_rounds(step, state, loop_state)
                    results = end_of_round(step, state, sums.end_round(), loop_state)
                    writer.scalars(name, step, results)
                    progress.line(_round_line(name, step, round_steps, steps, results, quiet))
                if saves:
                    loop_state.update(step_bytes=update.step_bytes, images=images * step)
                    clock = _save(checkpoints, step, state, loop_state, clock, context)
                if preempted:
                    checkpoints.wait()
                    raise Preempted(f"stage {name} is saved after step {step} of {steps}")
            progress.line(rate_line(name, loop_state))
    return state, {**loop_state, "sha256": files.checksum(state)}


def _block_length(context: Context, state: Any) -> int:
    """Updates in one dispatch, at most.

    On a CPU a scan is several times slower than single updates; a large network's update takes
    longer than its dispatch.
    """
    wanted = context.settings.block_steps
    if wanted == 0:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        wanted = _BLOCK if jax.default_backend() != "cpu" and size <= _SMALL_STATE else 1
    return 1 if context.profiled else wanted  # a trace begins and ends with single updates


def _dispatched(step: int, length: int, intervals: Collection[int], steps: int) -> int:
    """Number of updates to dispatch after `step`: a block, or 1 where no whole block fits.

    Blocks follow each other from the end of one interval to that of the next, so that a resumed
    run has the same ones.
    """
    before = max(step - step % interval for interval in intervals)
    after = min(steps, *(step - step % interval + interval for interval in intervals))
    return length if (step - before) % length == 0 and step + length <= after else 1


class _Updates:
    """The compiled updates of a stage: single ones, and blocks of several in one dispatch."""

    def __init__(self, name, train_step, feed: Feed, places, mesh: Mesh, length: int, reduce):
        """Compiles nothing yet; `length` is the number of updates in a block."""
        self._name, self._reduce, self._feed = name, reduce, feed
        self._compiled: dict[int, Any] = {}
        update, out_shardings = feed.bind(train_step), (places, meshes.replicated(mesh))

        def block(state, resident, batches):
            state, metrics = jax.lax.scan(
                lambda state, batch: update(state, resident, batch), state, batches
            )
            return state, jax.tree.map(lambda each: each.sum(axis=0), metrics)

        self._jitted = {
            count: jax.jit(function, donate_argnums=0, out_shardings=out_shardings)
            for count, function in ((length, block), (1, update))
        }
        self.step_bytes: int | None = None  # of the largest program

    def __call__(self, state: State, step: int, count: int) -> tuple[State, Metrics]:
        """The `count` updates after `step`: one, or a block."""
        arguments = self._feed.block_at(step, count) if count > 1 else self._feed.at(step)
        if count not in self._compiled:
            jitted = self._jitted[count]
            check_types(self._name, state, jax.eval_shape(jitted, state, *arguments)[0])
            self._compiled[count] = device_memory.compile_step(
                self._name, jitted, (state, *arguments), self._reduce
            )
            size = device_memory.step_bytes(self._compiled[count])
            self.step_bytes = max(filter(None, (size, self.step_bytes)), default=None)
        return self._compiled[count](state, *arguments)


def check_types(name: str, before: Any, after: Any) -> None:
    """Checks that an update keeps the types of a stage's state, which could not be updated again.

    Args:
      name: of the stage.
      before: the state.
      after: the shapes and types of the state after an update.

    Raises:
      TypeError: names the stage, and an array that changes its type.
    """
    old, new = leaves(before), leaves(after)
    for array in old | new:
        if (was := old.get(array, "absent")) != (now := new.get(array, "absent")):
            raise TypeError(f"an update of stage {name} changes {array!r} from {was} to {now}")


class _MetricSums:
    """Sums of metrics over the current interval and, in the loop state, over the current round."""

    def __init__(self, loop_state: LoopState):
        self._loop_state = loop_state
        self._interval: Metrics | None = None
        loop_state.setdefault("round", {})

    def add(self, metrics: Metrics) -> None:
        """Adds the metrics of one step, without waiting for them."""
        self._interval = metrics if self._interval is None else _merge(self._interval, metrics)

    def end_interval(self) -> dict[str, float]:
        """Averages over the interval, without metrics whose count is 0."""
        sums, self._interval = jax.device_get(self._interval), None
        pairs = {k: (float(m.total), float(m.count)) for k, m in sums.items()}
        of_round = self._loop_state["round"]
        for k, pair in pairs.items():
            of_round[k] = np.add(of_round.get(k, (0.0, 0.0)), pair).tolist()
        return {k: total / count for k, (total, count) in pairs.items() if count > 0}

    def end_round(self) -> Metrics:
        """The metrics of the round."""
        sums, self._loop_state["round"] = self._loop_state["round"], {}
        return {k: Average(total=total, count=count) for k, (total, count) in sums.items()}


@jax.jit
def _merge(left: Metrics, right: Metrics) -> Metrics:
    return jax.tree.map(jax.numpy.add, left, right)


def _last_saved(checkpoints: Checkpoints, workdir: Workdir, name: str, steps: int) -> int:
    """Number of updates at the last checkpoint, which a finished stage must still have."""
    start = checkpoints.latest_step() or 0
    if start < steps and workdir.marker(name) is not None:
        raise UserError(
            f"stage {name} is finished in {workdir}, but its last checkpoint is missing: restore "
            f"{workdir.checkpoints(name)}, or remove {workdir.stage(name)} to run the stage again"
        )
    if 0 < start < steps and distributed.is_first():
        print(f"{name}: resumed after step {start} of {steps}", file=sys.stderr, flush=True)
    return start


def _first_state(
    create_state: Callable[[], State], places: Any, start: int, checkpoints: Checkpoints
) -> tuple[State, LoopState]:
    """A new state, or the one saved after `start` updates, and its loop state."""
    if not start:
        return meshes.place(create_state(), places), {"seconds": 0.0, "device_seconds": 0.0}
    return checkpoints.restore(jax.jit(create_state, out_shardings=places).eval_shape())


def _save(checkpoints, step, state, loop_state, clock: float, context: Context) -> float:
    """Saves the state and the loop state; returns the time at which the save started."""
    now = time.monotonic()
    loop_state["seconds"] += now - clock
    before = loop_state.get("device_seconds", 0.0)  # absent in checkpoints of earlier versions
    loop_state["device_seconds"] = before + (now - clock) * context.mesh.size
    context.writer.flush()
    checkpoints.save(step, state, dict(loop_state))
    return now


def _finite(
    name: str, step: int, averages: Mapping[str, float], checkpoints: Checkpoints
) -> Mapping[str, float]:
    """Returns the averages if all are finite; raises `Diverged` otherwise."""
    bad = [key for key, value in averages.items() if not math.isfinite(value)]
    if not bad:
        return averages
    checkpoints.wait()
    saved = checkpoints.latest_step()
    kept = f"the checkpoint after step {saved} is kept" if saved else "there is no checkpoint yet"
    raise Diverged(
        f"stage {name}: {', '.join(bad)} not finite by step {step}; {kept}. "
        f"Lower the learning rate of this stage, or check its input."
    )


def rate_line(name: str, loop_state: Mapping[str, Any]) -> str:
    """A stage's throughput, by its `images` and `device_seconds`, with evaluation and saving."""
    seconds = loop_state.get("device_seconds") or math.inf
    rate = loop_state.get("images", 0) / seconds
    return f"{name}: {rate:.4g} images/s on each device, {seconds / 3600:.3g} device hours"


def _round_line(
    name: str, step: int, round_steps: int, steps: int, results: Mapping, quiet: Collection[str]
) -> str:
    rounds, this = math.ceil(steps / round_steps), math.ceil(step / round_steps)
    shown = (f"{key} {value:.4g}" for key, value in results.items() if key not in quiet)
    return f"{name} {this}/{rounds}  {'  '.join(shown)}"
