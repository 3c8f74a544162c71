"""Times the training steps for photos on this device, and says what share of its peak they reach.

    python -m benchmarks.photos [--rounds=20] [--network=resnet50] [--cpu]

A line for the CycleGAN step at 256, and for the adaptation step at 224 with batches of 32 and 64:
the median time of a step (minimum to maximum), real images a second, TFLOP/s counted from the
program before XLA optimises it, and their share of the device's dense peak in that precision.
Then the adaptation step fed with other images each time, which lie on the device or are streamed
from a file, against the same batch again and again.

`--cpu` makes the images, the batch and the networks small, to see that it runs.
"""

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import photos
from daaa_jax import adaptation, models, optimizers, pairing
from daaa_jax.data.augment import decode
from daaa_jax.data.feed import Feed
from daaa_jax.data.pairs import GROUPS, BatchStream
from daaa_jax.runtime import mesh as meshes

# Dense TFLOP/s of the vendors' data sheets: float32 in TF32 (as JAX convolves on a GPU), bfloat16.
PEAKS = {
    "H200": {"float32": 494.7, "bfloat16": 989.4},
    "H100": {"float32": 494.7, "bfloat16": 989.4},
    "A100": {"float32": 156.0, "bfloat16": 312.0},
}


def cyclegan_step(config, count: int):
    """The step of stage `pair`, its state and batch."""
    settings, size = config.pair, config.data.image_size
    optimizer = optimizers.make(settings.optimizer, total_steps=10**6)
    images = _images(max(count, settings.batch_size), size)
    state = pairing.create_state(jax.random.key(0), settings, optimizer, decode(images[:1]))
    step = functools.partial(pairing.train_step, settings=settings, optimizer=optimizer)
    rows = np.arange(settings.batch_size)
    return step, state, (images, images[::-1], rows, rows)


def adaptation_step(config, count: int, classes: int = 31):
    """The step of stage `adapt`, its state and batch."""
    crop, settings = config.augment.crop, config.adapt
    model = models.create_classifier(config.model, classes, settings.attention)
    image = jnp.zeros((1, crop, crop, 3))
    variables = jax.jit(lambda key: models.initial_variables(key, model, image))(jax.random.key(0))
    optimizer = optimizers.make(
        settings.optimizer, total_steps=10**6, round_steps=settings.round_steps
    )
    state = adaptation.create_state(jax.random.key(1), variables, variables, optimizer)
    labels = np.arange(count, dtype=np.int32) % classes
    sizes = adaptation.group_sizes(settings.batch_size, [settings.mix[g] for g in GROUPS])
    batch = BatchStream(labels, count, sizes, seed=0).at(0)
    step = functools.partial(adaptation.train_step, model=model, optimizer=optimizer, config=config)
    return step, state, (_images(4 * count, config.data.image_size), batch)


def _images(count: int, size: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def measure(step, state, batch, rounds: int) -> tuple[list[float], float]:
    """Seconds of each step, and floating-point operations of one."""
    lowered = jax.jit(step, donate_argnums=0).lower(state, *batch)
    flops, compiled = lowered.cost_analysis()["flops"], lowered.compile()
    batch, seconds = jax.device_put(batch), []
    for number in range(rounds + 3):  # three warm up
        start = time.perf_counter()
        state, metrics = compiled(state, *batch)
        float(metrics["loss"].total)
        if number >= 3:
            seconds.append(time.perf_counter() - start)
    return seconds, flops


def compare_inputs(config, count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of the adaptation step with each kind of input, measured in turn."""
    step, state, (_, batch) = adaptation_step(config, count)
    mesh = meshes.data_mesh(jax.devices()[:1])
    labels = np.arange(count, dtype=np.int32) % 31
    sizes = adaptation.group_sizes(config.adapt.batch_size, [config.adapt.mix[g] for g in GROUPS])
    stream = BatchStream(labels, count, sizes, seed=0)
    seconds: dict[str, list[float]] = {"the same batch": [], "on the device": [], "streamed": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, _images(4 * count, config.data.image_size))
        images = np.load(path, mmap_mode="r")
        feeds = {}
        for name, mib in (("on the device", 2**20), ("streamed", 0)):
            config.run.resident_mib = mib
            feeds[name] = Feed(
                (images,),
                functools.partial(adaptation.rows_at, stream),
                adaptation.with_their_images,
                steps=10 * rounds,
                mesh=mesh,
                settings=config.run,
            )
        always = feeds["on the device"].at(0)
        arguments = {
            "the same batch": lambda number: always,
            "on the device": feeds["on the device"].at,
            "streamed": feeds["streamed"].at,
        }
        compiled = {
            name: jax.jit(step, donate_argnums=0).lower(state, *at(0)).compile()
            for name, at in arguments.items()
        }
        state = meshes.replicate(state, mesh)
        for number in range(rounds + 3):  # three warm up
            for name, at in arguments.items():
                start = time.perf_counter()
                state, metrics = compiled[name](state, *at(number))
                float(metrics["loss"].total)
                if number >= 3:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="measured steps of each")
    parser.add_argument("--network", default="resnet50", help="model.name")
    parser.add_argument("--cpu", action="store_true", help="small sizes")
    options = parser.parse_args()
    kind = jax.devices()[0].device_kind
    peaks = next((peak for name, peak in PEAKS.items() if name in kind), {})
    print(f"jax {jax.__version__}, {kind}")
    print("| step | precision | ms | images/s | TFLOP/s | of peak |\n| --- |" + " --- |" * 5)
    for name, batch in (("CycleGAN", 1), ("adaptation", 32), ("adaptation", 64)):
        config = photos.get_config()
        config.model.name = options.network
        if options.cpu:
            photos.smoke(config)
        stage = config.pair if name == "CycleGAN" else config.adapt
        stage.batch_size = batch if not options.cpu else 8
        size = config.data.image_size if name == "CycleGAN" else config.augment.crop
        make = cyclegan_step if name == "CycleGAN" else adaptation_step
        step, state, arguments = make(config, count=stage.batch_size)
        seconds, flops = measure(step, state, arguments, options.rounds)
        half = name == "adaptation" and jax.default_backend() != "cpu"
        precision = "bfloat16" if half else "float32"
        median = statistics.median(seconds)
        rate = flops / median / 1e12
        share = f"{rate / peaks[precision]:.0%}" if peaks else "unknown"
        shown = stage.batch_size * (2 if name == "CycleGAN" else 1)
        spread = f"({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"
        print(
            f"| {name} at {size}, batch {stage.batch_size} | {precision} "
            f"| {1e3 * median:.1f} {spread} | {shown / median:.0f} | {rate:.2f} | {share} |",
            flush=True,
        )
    config = photos.get_config()
    config.model.name = options.network
    if options.cpu:
        photos.smoke(config)
    config.adapt.batch_size = 8 if options.cpu else 64
    seconds = compare_inputs(config, 32 if options.cpu else 500, options.rounds)
    print("| input of the adaptation step | ms | against the same batch |\n| --- | --- | --- |")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["the same batch"], strict=True)]
        median = 1e3 * statistics.median(times)
        print(f"| {name} | {median:.1f} | {statistics.median(ratios):.2f} |")


if __name__ == "__main__":
    main()
