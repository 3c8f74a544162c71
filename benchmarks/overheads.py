"""Cost of attention alignment and of the input in an adaptation step.

    python -m benchmarks.overheads [--rounds=10] [--network=resnet50] [--cpu]

For the digits and for a network for photos, alternating in one process, compares

- a step with and without attention maps; the source network runs to its last convolution in both;
- blocks of steps, dispatched as in the training loop, on new images on the device, on images
  streamed from a file, and on the same batch each time.

`--cpu` uses small photos, batches and networks.
"""

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from benchmarks import our_steps
from configs import digits, photos
from daaa_jax import attention
from daaa_jax.runtime import allocator
from daaa_jax.runtime import mesh as meshes
from daaa_jax.training.feed import Feed

CLASSES = 31
BLOCK = 30  # steps dispatched before waiting for them
WARM_UP = 2  # rounds not counted


def without_maps() -> contextlib.AbstractContextManager:
    """Context in which traced networks sow one number per image instead of a map."""

    def last(features, kind="sum_squares"):
        return features[:, -1, -1, -1:].astype(np.float32)

    return mock.patch.object(attention, "attention_map", last)


def images_of(config, count: int) -> np.ndarray:
    """Random images for all four groups, uint8 `[4 * count,H,W,3]`."""
    size = config.data.image_size
    draws = np.random.default_rng(0)
    return draws.integers(0, 256, (4 * count, size, size, 3)).astype(np.uint8)


def compare_maps(config, rounds: int) -> dict[str, list[float]]:
    """Seconds of the step with and without maps, measured alternately."""
    count = config.adapt.batch_size
    images, batch = images_of(config, count), our_steps.adaptation_batch(config, count, CLASSES)
    model, variables = our_steps.classifier(config, CLASSES)
    sides = {"with maps": our_steps.adaptation_step(config, model, variables, images, batch)}
    with without_maps():
        sides["without"] = our_steps.adaptation_step(config, model, variables, images, batch)
    return in_turn({name: _alone(step) for name, step in sides.items()}, rounds)


def _alone(step: our_steps.TrainingStep) -> Callable[[int], float]:
    def once(_: int) -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return once


def compare_inputs(config, count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per step with each kind of input, means over blocks, measured alternately."""
    batch = our_steps.adaptation_batch(config, count, CLASSES)
    model, variables = our_steps.classifier(config, CLASSES)
    mesh = meshes.data_mesh(jax.devices()[:1])
    stream = our_steps.adaptation_stream(config, count, CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, images_of(config, count))
        images = np.load(path, mmap_mode="r")
        sides: dict[str, Callable[[int], float]] = {}
        for name, mib in (("on the device", 2**20), ("streamed", 0)):
            config.run.resident_mib = mib
            feed = Feed(
                (images,),
                stream.at,
                steps=BLOCK * (rounds + WARM_UP),
                mesh=mesh,
                settings=config.run,
            )
            step = our_steps.adaptation_step(config, model, variables, *feed.at(0), bind=feed.bind)
            sides[name] = functools.partial(_block, step, feed.at)
        always = our_steps.adaptation_step(config, model, variables, images, batch)
        arguments = always.batch
        sides["the same batch"] = functools.partial(_block, always, lambda _: arguments)
        return in_turn(sides, rounds)


def _block(step: our_steps.TrainingStep, at: Callable[[int], tuple], number: int) -> float:
    """Seconds per update of block `number`, waiting only at its end."""
    start = time.perf_counter()
    for update in range(BLOCK * number, BLOCK * (number + 1)):
        step.state, _ = step.program(step.state, *at(update))
    jax.block_until_ready(step.state)
    return (time.perf_counter() - start) / BLOCK


def in_turn(sides: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Calls each side with the number of the round; returns their seconds after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + WARM_UP):
        for name, side in sides.items():
            found = side(number)
            if number >= WARM_UP:
                seconds[name].append(found)
    return seconds


def table(title: str, seconds: Mapping[str, list[float]], against: str) -> None:
    """Prints medians, and medians of the ratios within each round."""
    print(f"\n| {title} | ms | over {against} |\n| --- | --- | --- |")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[against], strict=True))
        print(f"| {name} | {1e3 * statistics.median(times):.2f} | {ratio - 1:+.1%} |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="measurements per variant")
    parser.add_argument("--network", default="resnet50", help="model.name for photos")
    parser.add_argument("--cpu", action="store_true", help="small photos, batches and network")
    options = parser.parse_args()
    allocator.keep_freed_memory()  # as daaa_jax.main does
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    small = digits.get_config()
    small.data.image_size = 32
    large = photos.get_config()
    large.model.update(name=options.network, weights="")
    if options.cpu:
        photos.on_cpu(large)
        large.model.weights = ""
    for name, config, count in (("digits", small, 4500), (large.model.name, large, 500)):
        title = f"{name}, batch {config.adapt.batch_size}"
        table(title, compare_maps(config, options.rounds), "without")
        table(title, compare_inputs(config, count, options.rounds), "the same batch")


if __name__ == "__main__":
    main()
