"""Compares each stage on this machine's accelerator, one update or batch, with the same on its CPU.

    python -m benchmarks.agreement [--small] [--out=FILE]

Both start from the same state and batch, in float32 with full precision of products, and with
gradient descent of rate 1, so that the change of the parameters is the gradient. Prints a line per
stage and ends with exit code 1 if a loss, a gradient or a translation differs by more than the
tolerance (relative L2 distance).
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from benchmarks import our_steps
from configs import digits, photos
from daaa_jax import adaptation, cyclegan, models, source
from daaa_jax.data.augment import decode
from daaa_jax.data.batches import gather

TOLERANCE = 1e-3
_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of arrays, `outputs(*arguments)`, which gives arrays by name."""

    outputs: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


def update(state: Any, batch: Any, train_step: Callable, params: Callable[[Any], Any]) -> Case:
    """Loss and gradient of `train_step(state, batch)`; `params` finds the parameters in a state."""

    def outputs(state, batch):
        after, metrics = train_step(state, batch)
        gradient = jax.tree.map(jnp.subtract, params(state), params(after))
        return {"loss": metrics["loss"].compute(), "gradient": gradient}

    return Case(outputs, (state, batch))


def pixels(count: int, size: int, seed: int) -> np.ndarray:
    """Random images, smooth over four pixels, uint8 `[N,size,size,3]`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 4, size // 4, 3))
    return coarse.astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def pair(config, size: int) -> Case:
    """Stage `pair`."""
    settings, descent = config.pair, optax.sgd(1.0)
    images = [pixels(settings.batch_size, size, seed) for seed in (0, 1)]
    state = cyclegan.create_state(jax.random.key(0), settings, descent, decode(images[0][:1]))
    step = functools.partial(cyclegan.train_step, settings=settings, optimizer=descent)
    return update(state, cyclegan.UnpairedBatch(*images), step, lambda s: s.generators.params)


def translate(config, size: int) -> Case:
    """Stage `translate`."""
    images = decode(pixels(config.pair.batch_size, size, 4))
    generator, _ = models.create_gan(config.pair)
    params = generator.init(jax.random.key(2), images[:1])["params"]
    return Case(
        lambda params, images: {"images": generator.apply({"params": params}, images)},
        (params, images),
    )


def train_source(config, size: int) -> Case:
    """Stage `source`."""
    descent, count = optax.sgd(1.0), config.source.batch_size
    model = models.create_classifier(config.model, _CLASSES, config.adapt.attention)
    images = pixels(count, size, 2)
    batch = source.LabelledBatch(images, np.arange(count, dtype=np.int32) % _CLASSES)
    state = source.create_state(jax.random.key(0), model, descent, decode(images[:1]))
    step = functools.partial(
        source.train_step, model=model, optimizer=descent, augment=config.augment
    )
    return update(state, batch, step, lambda s: s.variables["params"])


def adapt(config, size: int) -> Case:
    """Stage `adapt`, with EM active and every posterior kept."""
    config.em.update(start_step=0, threshold=0.0)
    descent, count = optax.sgd(1.0), config.adapt.batch_size
    model, variables = our_steps.classifier(config, _CLASSES)
    other = jax.tree.map(lambda leaf: 0.9 * leaf, variables)  # so that the maps differ
    state = adaptation.create_state(jax.random.key(1), variables, other, descent)
    step = functools.partial(adaptation.train_step, model=model, optimizer=descent, config=config)
    batch = gather(
        [pixels(4 * count, size, 3)], our_steps.adaptation_batch(config, count, _CLASSES)
    )
    return update(state, batch, step, lambda s: s.target["params"])


def cases(small: bool) -> dict[str, Callable[[], Case]]:
    """The cases by name; smaller ones to test this program."""
    of_digits, of_photos = digits.get_config(), photos.get_config()
    of_digits.data.image_size = 32
    of_photos.model.update(name="efficientnet_lite0", weights="", dtype="float32")
    size = 32 if small else 128
    of_photos.augment.crop = of_photos.data.image_size = size
    of_photos.pair.update(batch_size=2, pools=1, enlarge=size + size // 8)
    if small:
        of_digits.pair.update(filters=8, blocks=1, discriminator_filters=8)
        of_photos.pair.update(filters=4, blocks=1, discriminator_filters=4)
    for config in (of_digits, of_photos):
        config.source.batch_size = config.adapt.batch_size = 16 if small else 32
    made = {"pair": pair, "translate": translate, "source": train_source, "adapt": adapt}
    return {
        f"{kind}, {stage}": functools.partial(make, config, config.data.image_size)
        for kind, config in (("digits", of_digits), ("photos", of_photos))
        for stage, make in made.items()
    }


def difference(case: Case, device: jax.Device) -> dict[str, float]:
    """Relative L2 distances between this case on `device` and on the CPU, by output."""
    found = []
    for place in (jax.devices("cpu")[0], device):
        arguments = jax.device_put(case.arguments, place)
        with jax.default_device(place), jax.default_matmul_precision("highest"):
            outputs = jax.device_get(jax.jit(case.outputs)(*arguments))
        found.append({name: ravel_pytree(tree)[0].astype(float) for name, tree in outputs.items()})
    cpu, other = found
    return {
        name: float(np.linalg.norm(value - other[name]) / np.linalg.norm(value))
        for name, value in cpu.items()
    }


def main() -> None:
    """Compares all stages; exits with 1 if one does not agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small networks and images")
    parser.add_argument("--out", type=Path, help="JSON file for the differences")
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind} against the CPU, relative differences, tolerance {TOLERANCE}")
    found = {}
    for name, make in cases(options.small).items():
        found[name] = difference(make(), device)
        print(name, *(f"{output} {value:.1e}" for output, value in found[name].items()), flush=True)
        if options.out:  # after each stage, as a time limit may end this program
            report = {"device": device.device_kind, "tolerance": TOLERANCE, **found}
            options.out.write_text(json.dumps(report, indent=2))
    if any(not value <= TOLERANCE for of in found.values() for value in of.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
