"""Compares one update of each stage on this machine's accelerator with the same on its CPU.

    python -m benchmarks.agreement [--small] [--out=FILE]

Both start from the same state and batch, in float32 with full precision of products, and with
gradient descent of rate 1, so that the change of the parameters is the gradient. Prints a line per
stage and ends with exit code 1 if a loss or gradient differs by more than the tolerance (relative
L2 distance).
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
import numpy as np
import optax

from benchmarks import our_steps
from configs import digits, photos
from daaa_jax import adaptation, cyclegan, models, source
from daaa_jax.data.augment import decode
from daaa_jax.data.batches import gather

TOLERANCE = 1e-3
_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Update:
    """An update of a stage: `train_step(state, batch)`, and the parameters within its state."""

    state: Any
    batch: Any
    train_step: Callable
    params: Callable[[Any], Any]


def pixels(count: int, size: int, seed: int) -> np.ndarray:
    """Random images, smooth over four pixels, uint8 `[N,size,size,3]`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 4, size // 4, 3))
    return coarse.astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def pair(config, size: int) -> Update:
    """Stage `pair`."""
    settings, descent = config.pair, optax.sgd(1.0)
    images = [pixels(settings.batch_size, size, seed) for seed in (0, 1)]
    state = cyclegan.create_state(jax.random.key(0), settings, descent, decode(images[0][:1]))
    step = functools.partial(cyclegan.train_step, settings=settings, optimizer=descent)
    return Update(state, cyclegan.UnpairedBatch(*images), step, lambda s: s.generators.params)


def train_source(config, size: int) -> Update:
    """Stage `source`."""
    descent, count = optax.sgd(1.0), config.source.batch_size
    model = models.create_classifier(config.model, _CLASSES, config.adapt.attention)
    images = pixels(count, size, 2)
    batch = source.LabelledBatch(images, np.arange(count, dtype=np.int32) % _CLASSES)
    state = source.create_state(jax.random.key(0), model, descent, decode(images[:1]))
    step = functools.partial(
        source.train_step, model=model, optimizer=descent, augment=config.augment
    )
    return Update(state, batch, step, lambda s: s.variables["params"])


def adapt(config, size: int) -> Update:
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
    return Update(state, batch, step, lambda s: s.target["params"])


def cases(small: bool) -> dict[str, Callable[[], Update]]:
    """The updates by name; smaller ones to test this program."""
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
    made = {"pair": pair, "source": train_source, "adapt": adapt}
    return {
        f"{kind}, {stage}": functools.partial(make, config, config.data.image_size)
        for kind, config in (("digits", of_digits), ("photos", of_photos))
        for stage, make in made.items()
    }


def difference(update: Update, device: jax.Device) -> dict[str, float]:
    """Relative differences between this update on `device` and on the CPU."""
    found = {}
    for name, place in (("cpu", jax.devices("cpu")[0]), ("device", device)):
        state, batch = jax.device_put((update.state, update.batch), place)
        with jax.default_device(place), jax.default_matmul_precision("highest"):
            after, metrics = jax.jit(update.train_step)(state, batch)
        before = jax.tree.leaves(update.params(jax.device_get(update.state)))
        changed = jax.device_get(jax.tree.leaves(update.params(after)))
        gradient = [np.ravel(a - b).astype(float) for a, b in zip(before, changed, strict=True)]
        found[name] = float(metrics["loss"].compute()), np.concatenate(gradient)
    (loss, gradient), (other_loss, other_gradient) = found["cpu"], found["device"]
    return {
        "loss": abs(loss - other_loss) / abs(loss),
        "gradient": float(np.linalg.norm(gradient - other_gradient) / np.linalg.norm(gradient)),
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
        print(
            "{}: loss {loss:.1e}, gradient {gradient:.1e}".format(name, **found[name]), flush=True
        )
        if options.out:  # after each stage, as a time limit may end this program
            report = {"device": device.device_kind, "tolerance": TOLERANCE, **found}
            options.out.write_text(json.dumps(report, indent=2))
    if any(not value <= TOLERANCE for of in found.values() for value in of.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
