"""Scaling of the cost of a step and of a run, with fitted exponents.

    python -m benchmarks.growth [--rounds=5] [--counts=1000,10000,100000]

Measures the time of a step against the batch size, the side of an image, the aligned layers and the
classes; then, in a separate process, the time and memory of streaming generated images once through
each stage's input, followed by ten updates. An exponent of 1 is linear growth.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks import memory, our_steps
from configs import digits, photos
from daaa_jax import adaptation, attention, cyclegan, models, source
from daaa_jax.data import records
from daaa_jax.data.augment import decode
from daaa_jax.data.batches import IndexStream, Rows
from daaa_jax.data.images import Images
from daaa_jax.data.pairs import all_images
from daaa_jax.runtime import allocator
from daaa_jax.runtime import mesh as meshes
from daaa_jax.training import optimizers
from daaa_jax.training.feed import Feed

_SIZE = 32
_UPDATES = 10


def pixels(count: int, size: int) -> np.ndarray:
    """Random images, uint8 `[N,size,size,3]`."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def adaptation_step(config, classes: int = 10):
    """An adaptation step with new networks."""
    batch_size = config.adapt.batch_size
    images = pixels(4 * batch_size, config.augment.crop or config.data.image_size)
    batch = our_steps.adaptation_batch(config, batch_size, classes)
    model, variables = our_steps.classifier(config, classes)
    return our_steps.adaptation_step(config, model, variables, images, batch)


def digits_step(batch: int = 128, classes: int = 10):
    """An adaptation step of the digit network."""
    config = digits.get_config()
    config.data.image_size = _SIZE
    config.adapt.batch_size = batch
    return adaptation_step(config, classes)


def photos_step(layers: int):
    """An adaptation step of EfficientNet-Lite0 at 64 pixels, aligning the first of 48 layers."""
    config = photos.get_config()
    config.model.update(name="efficientnet_lite0", weights="")
    config.data.image_size = 64
    config.augment.crop = 0
    config.adapt.batch_size = 16
    names = _aligned(config)[:layers]
    config.adapt.layers = "|".join(names)
    return adaptation_step(config)


def _aligned(config) -> list[str]:
    model, variables = our_steps.classifier(config, 10)
    image = np.zeros((1, 64, 64, 3), np.float32)
    names: list[str] = []

    def observe(variables):
        _, seen = model.apply(variables, image, train=False, mutable=["intermediates"])
        names[:] = attention.collect(seen["intermediates"], config.adapt.layers)

    jax.eval_shape(observe, variables)
    return names


def cyclegan_step(size: int):
    """A step of the digits' CycleGAN on images of `size` pixels."""
    settings = digits.get_config().pair
    settings.batch_size = 4
    return our_steps.cyclegan_update(settings, (pixels(4, size), pixels(4, size)))


CURVES: dict[str, tuple[Callable, Sequence[int]]] = {
    "batch of digits": (lambda value: digits_step(batch=value), (32, 64, 128, 256, 512)),
    "side of an image, CycleGAN": (cyclegan_step, (32, 48, 64, 96, 128)),
    "aligned layers of 48": (photos_step, (1, 12, 24, 48)),
    "classes of digits": (lambda value: digits_step(classes=value), (10, 100, 1000)),
}


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent b of cost = a value^b, by least squares on logarithms."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def step_seconds(step: Callable[[], float], rounds: int) -> float:
    """Median seconds of `rounds` updates, after two warm-up updates."""
    times = []
    for number in range(rounds + 2):
        start = time.perf_counter()
        step()
        if number >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _write_records(folder: Path, name: str, count: int) -> Images:
    path = folder / f"{name}{records.SUFFIX}"
    draws = np.random.default_rng(len(name))
    records.write(
        path,
        (draws.integers(0, 256, (_SIZE, _SIZE, 3), dtype=np.uint8) for _ in range(count)),
    )
    return records.read([(path, count)], [_SIZE, _SIZE, 3], name)


def stages(folder: Path, count: int) -> Iterator[tuple[str, Feed, Callable, object, int]]:
    """Yields name, streamed input, step, state and updates per pass of pair, source and adapt."""
    config = digits.get_config()
    config.run.resident_mib = 0
    sets = [_write_records(folder, name, count) for name in ("s", "t_f", "t", "s_f")]
    labels = (np.arange(count) % 10).astype(np.int32)
    mesh = meshes.data_mesh(jax.devices()[:1])
    key, image = jax.random.key(0), decode(np.asarray(sets[0][np.arange(1)]))
    model = models.create_classifier(config.model, 10, config.adapt.attention)
    variables = models.initial_variables(key, model, image)

    def feed(images, batch_at, batch):
        updates = -(-count // batch)
        steps = updates + _UPDATES
        return Feed(images, batch_at, steps=steps, mesh=mesh, settings=config.run), updates

    settings, optimizer = config.pair, optimizers.make(config.pair.optimizer, total_steps=10**6)
    streams = [IndexStream(count, settings.batch_size, 0, name) for name in ("pair a", "pair b")]
    made, updates = feed(
        (sets[0], sets[2]),
        lambda step: cyclegan.UnpairedBatch(*(Rows(s.at(step), n) for n, s in enumerate(streams))),
        settings.batch_size,
    )
    yield (
        "pair",
        made,
        functools.partial(cyclegan.train_step, settings=settings, optimizer=optimizer),
        cyclegan.create_state(key, settings, optimizer, image),
        updates,
    )

    optimizer = optimizers.make(config.source.optimizer, total_steps=10**6)
    stream = IndexStream(count, config.source.batch_size, 0, "source")

    def labelled(step):
        rows = stream.at(step)
        return source.LabelledBatch(Rows(rows), labels[rows])

    made, updates = feed(
        (sets[0],),
        labelled,
        config.source.batch_size,
    )
    yield (
        "source",
        made,
        functools.partial(
            source.train_step, model=model, optimizer=optimizer, augment=config.augment
        ),
        source.create_state(key, model, optimizer, image),
        updates,
    )

    images = all_images(*map(Images, sets))
    training = adaptation.target_training(config, model, variables, images, labels, 1)
    made, updates = feed(training.image_sets, training.batch_at, config.adapt.batch_size)
    yield "adapt", made, training.train_step, training.create_state(), updates


def passes(folder: Path, count: int) -> dict[str, float]:
    """Seconds of one pass over each stage's input, before ten updates; and peak memory in MiB."""
    seconds = {}
    for name, feed, step, state, updates in stages(folder, count):
        start = time.perf_counter()
        for number in range(updates):
            jax.block_until_ready(feed.at(number)[-1])
        seconds[name] = time.perf_counter() - start
        update = jax.jit(feed.bind(step), donate_argnums=0)
        for number in range(updates, updates + _UPDATES):
            state, _ = update(state, *feed.at(number))
        jax.block_until_ready(state)
    return seconds | {"MiB": memory.own_peak()}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measured updates per point")
    parser.add_argument("--counts", default="1000,10000,100000", help="numbers of images")
    options = parser.parse_args()
    allocator.keep_freed_memory()  # as daaa_jax.main does
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print("| a step's time against | ms | exponent |\n| --- | --- | --- |")
    for name, (make, values) in CURVES.items():
        costs = [step_seconds(make(value), options.rounds) for value in values]
        points = ", ".join(f"{v}: {1e3 * c:.1f}" for v, c in zip(values, costs, strict=True))
        print(f"| {name} | {points} | {exponent(values, costs):.2f} |", flush=True)
    counts = [int(count) for count in options.counts.split(",")]
    found = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            found.append(memory.returned(passes, Path(folder), count))
    print("\n| one pass over so many images | s or MiB | exponent |\n| --- | --- | --- |")
    for name in found[0]:
        costs = [each[name] for each in found]
        points = ", ".join(f"{v:,}: {c:.4g}" for v, c in zip(counts, costs, strict=True))
        print(f"| {name} | {points} | {exponent(counts, costs):.2f} |", flush=True)


if __name__ == "__main__":
    main()
