"""The training loop that the stages share, in an order that survives a kill at any moment."""

import math
import time
import zlib
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any, TypeVar

import jax
from clu.metrics import Average
from jax.sharding import Mesh

from daaa_jax.errors import Diverged, UserError
from daaa_jax.runtime import device_memory, markers
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.checkpoints import Checkpoints
from daaa_jax.runtime.preemption import Preempted
from daaa_jax.runtime.profiling import Profile
from daaa_jax.runtime.progress import Progress
from daaa_jax.training.context import Context

State = TypeVar("State")
Metrics = Mapping[str, Average]
Memory = MutableMapping[str, Any]


def stage_key(seed: int, name: str) -> jax.Array:
    """The PRNG key of a stage: those of other stages, and of other seeds, are independent."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def mean(values: jax.Array) -> Average:
    """A metric of one step as a (sum, count) pair, so that uneven groups average rightly."""
    return Average(total=values.sum(), count=jax.numpy.float32(values.size))


@jax.jit
def _merge(left: Metrics, right: Metrics) -> Metrics:
    return jax.tree.map(jax.numpy.add, left, right)


def run(
    name: str,
    create_state: Callable[[], State],
    train_step: Callable[..., tuple[State, Metrics]],
    batch_at: Callable[[int], tuple],
    *,
    steps: int,
    round_steps: int,
    end_of_round: Callable[[int, State, Metrics, Memory], Mapping[str, float]],
    context: Context,
    between_rounds: Callable[[int, State, Memory], State] = lambda step, state, memory: state,
    shardings: Callable[[Any, Mesh], Any] = meshes.state_shardings,
    reduce: str = "the batch size",
    quiet: Collection[str] = (),
) -> tuple[State, Memory]:
    """Trains one stage to its end, from its last checkpoint if it has one.

    After the update number `s` that ends a logging interval, a saving interval or a round:

    1. the metrics since the last such point are fetched and must be finite, so that a checkpoint
       never holds a state that is not;
    2. they are written, and added to the round's sums;
    3. at the end of a round, `between_rounds` may change the state, `end_of_round` evaluates, and
       its figures are written;
    4. only then the state and the memory are saved. What was written past the last save is dropped
       when the run resumes, and is written again;
    5. if the run has been told to end, which counts as the end of a saving interval, it does.

    Args:
      name: the stage, and the folder under the workdir.
      create_state: makes the initial state; only its shapes are asked for where it is restored.
      train_step: `(state, *batch) -> (state, metrics)`; it is compiled here, donating the state.
      batch_at: the batch of update `s`, counted from 0: a function of `s` alone.
      steps: number of updates in all.
      round_steps: number of updates between two calls of `end_of_round`, which is also called
        after the last update.
      end_of_round: `(step, state, round_metrics, memory) -> figures`; it may keep what it needs in
        `memory`, a JSON object that is saved with the state.
      context: the surroundings of the run.
      between_rounds: `(step, state, memory) -> state`, before `end_of_round`; arrays that it
        replaces may be NumPy's.
      shardings: where each array of a state lies on a mesh, given the shapes.
      reduce: the settings that make a step take less memory, for a message.
      quiet: figures of `end_of_round` that are written, but not in the line that it is told by.

    Returns:
      The final state and the memory; in it are `seconds`, the time the stage took over all its
      starts, `step_bytes`, what a step takes on each device, and `sha256` of the final state.

    Raises:
      Diverged: if a metric is not finite.
      UserError: if the devices run out of memory, or a finished stage has
        lost its last checkpoint.
      Preempted: if the run has been told to end; all is saved.
    """
    settings = context.settings
    with Checkpoints(context.workdir / name / "checkpoints") as checkpoints:
        memory: Memory = {"seconds": 0.0, "round": {}}
        start = checkpoints.latest_step() or 0
        if start < steps and markers.read_marker(context.workdir / name) is not None:
            folder = context.workdir / name
            raise UserError(
                f"{folder} says that stage {name} is finished, and its last checkpoint is missing: "
                f"restore {folder / 'checkpoints'}, or remove {folder} to run the stage again"
            )
        shapes = jax.eval_shape(create_state)
        places = shardings(shapes, context.mesh)
        if start:
            expected = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                shapes,
                places,
            )
            with device_memory.enough_memory(f"stage {name}", reduce):
                state, memory = checkpoints.restore(expected)
        else:
            state = meshes.place(create_state(), places)
        update = jax.jit(
            train_step,
            donate_argnums=0,
            out_shardings=(places, meshes.replicated(context.mesh)),
        )
        context.writer.drop_after(name, start)
        profiled = context.workdir / "profile" / name if context.profiled else None
        with (
            device_memory.enough_memory(f"stage {name}", reduce),
            Progress(name, steps, start, later=context.later.get(name, 0.0)) as progress,
            Profile(profiled, start, steps, round_steps, progress.line) as profile,
        ):
            if 0 < start < steps:
                progress.line(f"{name}: resumed after step {start} of {steps}")
            clock, sums = time.monotonic(), None
            for step in range(start + 1, steps + 1):
                batch = batch_at(step - 1)
                if step == start + 1:
                    update = device_memory.compile_step(name, update, (state, *batch), reduce)
                    memory["step_bytes"] = device_memory.step_bytes(update)
                profile.before(step, state)
                state, metrics = update(state, *batch)
                profile.after(step, state, update)
                sums = metrics if sums is None else _merge(sums, metrics)
                ends_round = step % round_steps == 0 or step == steps
                told_to_end = context.notice.after_update()
                saves = ends_round or told_to_end or step % settings.checkpoint_every == 0
                if not (saves or step % settings.log_every == 0):
                    continue
                sums = jax.device_get(sums)
                figures = _figures(sums)
                _check_finite(name, step, figures, checkpoints)
                context.writer.scalars(name, step, figures)
                progress.update(step, figures)
                memory["round"] = _add(memory["round"], sums)
                sums = None
                if ends_round:
                    in_round = {
                        k: Average(total=t, count=c) for k, (t, c) in memory["round"].items()
                    }
                    memory["round"] = {}
                    with device_memory.enough_memory(
                        f"evaluation in stage {name}", "evaluate.batch_size or evaluate.crops"
                    ):
                        state = _placed(between_rounds(step, state, memory), places)
                        results = end_of_round(step, state, in_round, memory)
                    context.writer.scalars(name, step, results)
                    told = {k: v for k, v in results.items() if k not in quiet}
                    progress.line(_round_line(name, step, round_steps, steps, told))
                if saves:
                    now = time.monotonic()
                    memory["seconds"], clock = memory["seconds"] + now - clock, now
                    context.writer.flush()
                    checkpoints.save(step, state, dict(memory))
                if told_to_end:
                    checkpoints.wait()
                    raise Preempted(f"stage {name} is saved after step {step} of {steps}")
    return state, {**memory, "sha256": markers.checksum(state)}


def _placed(state: State, places: Any) -> State:
    """A state whose NumPy arrays are put on the devices."""
    return jax.tree.map(
        lambda leaf, place: leaf if isinstance(leaf, jax.Array) else meshes.place(leaf, place),
        state,
        places,
    )


def _figures(sums: Metrics) -> dict[str, float]:
    """Averages of the pairs that counted anything."""
    return {k: float(m.total) / float(m.count) for k, m in sums.items() if float(m.count) > 0}


def _add(totals: Mapping[str, list[float]], sums: Metrics) -> dict[str, list[float]]:
    pairs = {k: (float(m.total), float(m.count)) for k, m in sums.items()}
    old = {k: totals.get(k, (0.0, 0.0)) for k in pairs}
    return {k: [old[k][0] + total, old[k][1] + count] for k, (total, count) in pairs.items()}


def _check_finite(
    name: str, step: int, figures: Mapping[str, float], checkpoints: Checkpoints
) -> None:
    bad = [key for key, value in figures.items() if not math.isfinite(value)]
    if not bad:
        return
    checkpoints.wait()
    good = checkpoints.latest_step()
    kept = f"the checkpoint after step {good} is kept" if good else "no checkpoint was written yet"
    raise Diverged(
        f"stage {name}: {', '.join(bad)} not finite by step {step}; {kept}. "
        f"Lower the learning rate of this stage, or look at its input."
    )


def _round_line(name: str, step: int, round_steps: int, steps: int, results: Mapping) -> str:
    rounds, this = math.ceil(steps / round_steps), math.ceil(step / round_steps)
    text = "  ".join(f"{key} {value:.4g}" for key, value in results.items())
    return f"{name} {this}/{rounds}  {text}"
