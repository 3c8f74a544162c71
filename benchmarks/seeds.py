"""Seeds in an hour: the adaptation step of several seeds at once against as many lone steps.

    python -m benchmarks.seeds [--counts=2,4,8] [--rounds=10]

Each line: the median time of the step of so many seeds and of as many lone steps, in turn in one
process, and the median of the ratios of neighbouring measurements: above 1, several seeds at once
give more in an hour.
"""

import argparse
import functools
import statistics
import time

import jax
import numpy as np

from configs import digits
from daaa_jax import adaptation, models, seeds
from daaa_jax.data.augment import decode
from daaa_jax.data.pairs import all_images
from daaa_jax.runtime import allocator

_IMAGES = 512  # of each domain; how many does not change a step


def steps(count: int):
    """The step of one seed and that of `count`, each a function that makes it once."""
    config = digits.get_config()
    model = models.create_classifier(config.model, 10, config.adapt.attention)
    draws = np.random.default_rng(0)
    images = all_images(
        *(draws.integers(0, 256, (_IMAGES, 32, 32, 3)).astype(np.uint8) for _ in range(4))
    )
    labels = draws.integers(0, 10, _IMAGES).astype(np.int32)
    source = models.initial_variables(jax.random.key(0), model, decode(images[:1]))
    config.seeds = count
    plans = [
        adaptation.plan(alone, model, source, images, labels, 1)
        for alone in seeds.configs(config).values()
    ]
    states = [plan.create_state() for plan in plans]
    stored = jax.device_put(np.asarray(images))
    batch = plans[0].batch_at(0)
    stacked = seeds.Stacked([plan.batch_at for plan in plans])(0)
    together = seeds.stack_step(plans[0].step, list(range(count)), 1)
    return (
        _Step(plans[0].step, states[0], (stored, *batch)),
        _Step(together, jax.tree.map(lambda *x: jax.numpy.stack(x), *states), (stored, *stacked)),
    )


class _Step:
    """A jitted step that keeps its state, and waits for its loss."""

    def __init__(self, step, state, batch):
        self.step, self.state, self.batch = jax.jit(step, donate_argnums=0), state, batch

    def __call__(self) -> None:
        self.state, metrics = self.step(self.state, *self.batch)
        jax.block_until_ready(metrics["loss"].total)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="2,4,8", help="numbers of seeds")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each")
    options = parser.parse_args()
    allocator.keep_freed_memory()  # as daaa_jax.main does
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print("| seeds | at once, ms | one after another, ms | gain |\n| --- | --- | --- | --- |")
    for count in map(int, options.counts.split(",")):
        lone, together = steps(count)
        for step in (lone, together):  # compiles and warms up
            step()
            step()
        times = {"lone": [], "together": []}
        for _ in range(options.rounds):
            for name, step in (
                ("together", together),
                ("lone", functools.partial(_several, lone, count)),
            ):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        gain = statistics.median(
            a / b for a, b in zip(times["lone"], times["together"], strict=True)
        )
        cells = [f"{1e3 * statistics.median(times[name]):.0f}" for name in ("together", "lone")]
        print(f"| {count} | {cells[0]} | {cells[1]} | {gain:.2f} |", flush=True)


def _several(step, count: int) -> None:
    for _ in range(count):
        step()


if __name__ == "__main__":
    main()
