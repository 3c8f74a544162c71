"""Several seeds of stage `adapt` at once: one compiled step for all, a folder for each.

The states of all seeds are stacked, and the step is mapped over them (`jax.vmap`). On several
devices each has some of the seeds, whole, and nothing is sent between them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from daaa_jax import rounds, second_view, target_stage
from daaa_jax.data.feed import Batch, Feed
from daaa_jax.data.images import Images
from daaa_jax.data.types import MeasuredData
from daaa_jax.evaluation import Evaluator
from daaa_jax.models import Variables
from daaa_jax.runtime import loop
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.context import Context
from daaa_jax.runtime.metrics import MetricWriter
from daaa_jax.target_stage import NAME, Plan

FOLDER = "seeds"


def configs(config: ConfigDict) -> dict[int, ConfigDict]:
    """Of each seed, the config of a lone run with the same CycleGAN and source network."""
    found = {}
    for seed in range(config.seed, config.seed + config.seeds):
        alone = config.copy_and_resolve_references()
        alone.seed, alone.seeds = seed, 1
        found[seed] = alone
    return found


def home(workdir: Path, seed: int) -> Path:
    """The folder of a seed, laid out as the working directory of a lone run."""
    return workdir / FOLDER / str(seed)


def run(
    plans: Mapping[int, Plan],
    config: ConfigDict,
    evaluate: Evaluator,
    measured: MeasuredData,
    context: Context,
    keep: Mapping[int, Callable[[int, Variables], None]],
) -> dict[int, tuple[Variables, Mapping[str, Any]]]:
    """Trains the target networks of all seeds, or goes on with them.

    Args:
      plans: of each seed, for one device.
      config: the whole config.
      evaluate: measures a network on some images.
      measured: as for `target_stage.run`.
      context: the surroundings of the run.
      keep: of each seed, as for `target_stage.run`.

    Returns:
      Of each seed what `target_stage.run` returns; its `seconds` are its share of the time.
    """
    numbers, mesh = list(plans), context.mesh
    steps = config.adapt.rounds * config.adapt.round_steps
    some = plans[numbers[0]]
    feed = Feed(
        some.images,
        Stacked([plan.batch_at for plan in plans.values()]),
        Filled(some.fill),
        steps=steps,
        mesh=mesh,
        settings=context.settings,
    )
    pick = jax.jit(
        lambda state, place: jax.tree.map(lambda leaf: leaf[place], state),
        out_shardings=meshes.replicated(mesh),
    )

    views = {seed: plan.view_reader(evaluate, measured) for seed, plan in plans.items()}

    def between_rounds(step, state, memory):
        each = memory.setdefault(FOLDER, {})
        gammas = []
        for place, (seed, view) in enumerate(views.items()):
            if view is not None:
                teacher, own = some.teacher(pick(state, place)), each.setdefault(str(seed), {})
                gammas.append(
                    second_view.measure_once(view, step, teacher, own, who=f"seed {seed}: ")
                )
        if not gammas or gammas[0] is None:
            return state
        return state.replace(gamma=np.asarray(gammas, np.float32))

    def end_of_round(step, state, metrics, memory):
        each = memory.setdefault(FOLDER, {})
        figures = {}
        for place, seed in enumerate(numbers):
            own = pick(state, place)
            figures[seed] = rounds.end(
                step,
                own.target,
                {name: metrics[f"{seed}/{name}"] for name in some.told},
                each.setdefault(str(seed), {}),
                evaluate=evaluate,
                measured=measured,
                settings=config.evaluate,
                keep=keep[seed],
                folder=home(context.workdir, seed) / NAME,
                told=some.told,
                posterior=some.posterior(own),
                view=views[seed],
            )
        known = set.intersection(*(set(own) for own in figures.values()))
        mean = {
            name: sum(own[name] for own in figures.values()) / len(figures)
            for name in figures[numbers[0]]
            if name in known
        }
        return mean | {
            f"{seed}/{name}": value for seed, own in figures.items() for name, value in own.items()
        }

    with Writers(context.writer, {seed: home(context.workdir, seed) for seed in numbers}) as writer:
        state, memory = loop.run(
            NAME,
            lambda: jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *(plan.create_state() for plan in plans.values())
            ),
            stack_step(some.step, numbers, len(some.images)),
            feed.at,
            steps=steps,
            round_steps=config.adapt.round_steps,
            between_rounds=between_rounds,
            end_of_round=end_of_round,
            context=dataclasses.replace(context, writer=writer),
            shardings=lambda shapes, mesh: jax.tree.map(
                lambda _: meshes.batch_sharded(mesh), shapes
            ),
            reduce=f"seeds, {target_stage.REDUCE}",
            quiet=rounds.QUIET,
        )
    about = {
        "seconds": memory["seconds"] / len(numbers),
        "step_bytes": memory.get("step_bytes"),
        "sha256": memory["sha256"],
    }
    return {
        seed: (pick(state, place).target, memory[FOLDER][str(seed)] | about)
        for place, seed in enumerate(numbers)
    }


def stack_step(step: Callable, numbers: Sequence[int], sets: int) -> Callable:
    """A step of stacked states, from that of one.

    Args:
      step: `(state, *images, *batch) -> (state, metrics)`.
      numbers: the seeds, in the order in which their states lie.
      sets: how many sets of images there are, which all seeds share.

    Returns:
      The same for states and batches with a first axis for the seeds. Metrics are those of each
      seed, `3/loss`, and of all together, `loss`.
    """

    def stacked(state: Any, *arguments: Any) -> tuple[Any, dict[str, Any]]:
        images, batch = arguments[:sets], arguments[sets:]
        state, metrics = jax.vmap(lambda state, *batch: step(state, *images, *batch))(state, *batch)
        together = {
            name: jax.tree.map(lambda x: x.sum(axis=0), metric) for name, metric in metrics.items()
        }
        return state, together | {
            f"{seed}/{name}": jax.tree.map(lambda x, at=place: x[at], metric)
            for place, seed in enumerate(numbers)
            for name, metric in metrics.items()
        }

    return stacked


class Stacked:
    """The batches of all seeds at a step, each array with a first axis for the seeds."""

    def __init__(self, each: Sequence[Callable[[int], Batch]]):
        """Takes what gives the batch of each seed."""
        self._each = each

    def __call__(self, step: int) -> Batch:
        """The batch of update `step`, counted from 0."""
        return jax.tree.map(
            lambda *parts: np.stack(parts), *(batch_at(step) for batch_at in self._each)
        )


class Filled:
    """Such batches with images in place of their rows."""

    def __init__(self, fill: Callable[[Sequence[Images], Batch], Batch]):
        """Takes what fills the batch of one seed."""
        self._fill = fill

    def __call__(self, images: Sequence[Images], batch: Batch) -> Batch:
        """Fills one after another."""
        count = len(jax.tree.leaves(batch)[0])
        filled = [
            self._fill(images, jax.tree.map(lambda x, at=place: x[at], batch))
            for place in range(count)
        ]
        return jax.tree.map(lambda *parts: np.stack(parts), *filled)


class Writers:
    """As a `MetricWriter`; figures called `3/loss` go to the folder of seed 3, as `loss`."""

    def __init__(self, together: MetricWriter, homes: Mapping[int, Path]):
        """Opens the files of each seed; the one of all together stays the caller's."""
        self._together = together
        self._each = {seed: MetricWriter(folder) for seed, folder in homes.items()}

    def scalars(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Writes the figures of one step, see `MetricWriter.scalars`."""
        whole = {name: value for name, value in figures.items() if "/" not in name}
        self._together.scalars(stage, step, whole)
        for seed, writer in self._each.items():
            begin = f"{seed}/"
            own = {n.removeprefix(begin): v for n, v in figures.items() if n.startswith(begin)}
            writer.scalars(stage, step, own)

    def drop_after(self, stage: str, step: int) -> None:
        """See `MetricWriter.drop_after`."""
        for writer in (self._together, *self._each.values()):
            writer.drop_after(stage, step)

    def flush(self) -> None:
        """See `MetricWriter.flush`."""
        for writer in (self._together, *self._each.values()):
            writer.flush()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._each.values():
            writer.close()
