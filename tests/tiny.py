"""Settings, images and contexts small enough to run the stages within a test."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import digits
from daaa_jax import validate
from daaa_jax.data.types import LabelledImages
from daaa_jax.evaluation.second_view import SecondView
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import DigitNetwork
from daaa_jax.runtime import mesh
from daaa_jax.runtime.metrics import MetricWriter
from daaa_jax.training.context import Context

CLASSES = 4
MODEL = DigitNetwork(num_classes=CLASSES, widths=(4, 4, 4))


def make_config(changes: dict[str, Any] | None = None) -> ConfigDict:
    """The digits' config with small networks and batches; `changes` by dotted name."""
    config = digits.get_config()
    small = {
        "pair.filters": 4,
        "pair.downsamplings": 0,
        "pair.blocks": 1,
        "pair.discriminator_filters": 4,
        "pair.discriminator_layers": 1,
        "pair.batch_size": 8,
        "pair.epochs": 2,
        "pair.pool_size": 12,
        "source.batch_size": 8,
        "source.epochs": 2,
        "source.round_epochs": 1,
        "adapt.batch_size": 8,
        "adapt.round_steps": 3,
        "adapt.rounds": 2,
        "adapt.optimizer.learning_rate": 1e-3,
        "adapt.recolour": 0.5,
        "em.posterior": "paired",
        "em.decay": 0.0,
        "em.threshold": 0.0,
        "run.log_every": 1,
        "run.checkpoint_every": 2,
    }
    for name, value in (small | (changes or {})).items():
        config.update_from_flattened_dict({name: value})
    validate.resolve(config, 1)
    return config


def make_images(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """Random colours in four quarters, so that networks have something to tell apart: uint8."""
    quarters = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return quarters.repeat(size // 2, axis=1).repeat(size // 2, axis=2)


def make_labelled(count: int, seed: int = 0, size: int = 32) -> LabelledImages:
    """Images whose class is the quarter with the most red."""
    images, half = make_images(count, seed, size), size // 2
    red = images[:, ::half, ::half, 0].reshape(count, CLASSES)
    return LabelledImages(images, red.argmax(1).astype(np.int32))


@contextlib.contextmanager
def make_context(workdir: Path, config: ConfigDict, devices: int = 1) -> Iterator[Context]:
    """A context on the first simulated devices."""
    devices = mesh.data_mesh(jax.devices()[:devices], config.run.parameter_shards)
    place = Workdir(workdir)
    with MetricWriter(place.metrics_jsonl, place.tensorboard) as writer:
        yield Context(place, devices, writer, config.run)


def give_weight(patch) -> None:
    """Has the second view weigh something, other for each seed: small networks are never sure."""
    counts = dict.fromkeys(("confident", "contradictions", "own", "others", "e", "e0", "e1"), 0)

    def measure(view, posterior):
        return {"gamma": float(np.float32(0.2 * (1 + view.config.seed))), **counts}

    patch.setattr(SecondView, "measure", measure)


def fast_jit(function: Callable, **options) -> Callable:
    """`jax.jit` for a function that is called a few times: compiles quickly to slow code."""
    quickly = {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=quickly, **options)


def assert_same_bits(tree, other) -> None:
    """Every leaf is equal bit for bit."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for (path, leaf), twin in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(other), strict=True
    ):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, twin = jax.random.key_data(leaf), jax.random.key_data(twin)
        leaf, twin = np.asarray(leaf), np.asarray(twin)
        assert (leaf.dtype, leaf.shape) == (twin.dtype, twin.shape), jax.tree_util.keystr(path)
        assert leaf.tobytes() == twin.tobytes(), jax.tree_util.keystr(path)


def pool_twin(stored, capacity, images, key):
    """The released CycleGAN's pool, one image after another; `stored` is changed in place."""
    shown = []
    keys = key if key.shape else jax.random.split(key, len(images))
    for image, own in zip(images, keys, strict=True):
        slot_key, coin_key = jax.random.split(own)
        if len(stored) < capacity:
            stored.append(image)
            shown.append(image)
        elif jax.random.bernoulli(coin_key):
            slot = int(jax.random.randint(slot_key, (), 0, capacity))
            shown.append(stored[slot])
            stored[slot] = image
        else:
            shown.append(image)
    return shown
