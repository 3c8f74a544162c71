"""Our training steps, compiled as in the stages, with the compiler's cost analysis."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from daaa_jax import adaptation, cyclegan, evaluation, models, translation
from daaa_jax.data.augment import decode
from daaa_jax.data.batches import gather
from daaa_jax.data.pairs import GROUPS, AdaptationBatch, BatchStream, group_sizes
from daaa_jax.data.types import LabelledImages
from daaa_jax.models import efficientnet, pretrained, resnet
from daaa_jax.runtime import mesh as meshes
from daaa_jax.training import optimizers

# Layer names in `torch_networks.py`, and ours.
DIGITS_NAMES = (
    (r"convolution(\d)\.weight", r"convolution\1/kernel"),
    (r"norm(\d)\.(\w+)", r"norm\1/\2"),
    (r"classifier\.weight", r"classifier/kernel"),
    (r"classifier\.bias", r"classifier/bias"),
)
GAN_NAMES = (
    (r"block(\d+)\.([ab])\.weight", r"block\1\2/kernel"),
    (r"block(\d+)\.([ab])_norm\.(\w+)", r"block\1\2_norm/\3"),
    (r"(\w+_norm)\.(\w+)", r"\1/\2"),
    (r"(\w+)\.weight", r"\1/kernel"),
    (r"(\w+)\.bias", r"\1/bias"),
)
NAMES = {
    "digits": DIGITS_NAMES,
    "resnet50": resnet.WEIGHT_NAMES,
    "efficientnet_lite0": efficientnet.WEIGHT_NAMES,
}
_STEPS = 10**6  # length of the schedules, which no benchmark comes near


@dataclasses.dataclass
class Cost:
    """The compiler's cost analysis of a program that is called `calls` times.

    Attributes:
      compiled_in: seconds of compilation.
      flops: floating-point operations before optimisation, as XLA cannot count those in library
        calls.
      bytes: bytes read and written by the optimised program, caches ignored; None on a GPU, where
        XLA cannot count those in library calls.
      memory: bytes of arguments, results and temporary arrays.
    """

    compiled_in: float
    flops: float
    bytes: float | None
    memory: float


def compile_program(function: Callable, arguments, donate=(), calls: int = 1):
    """Compiles a function for its arguments; returns the program and its `Cost`."""
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    flops, moved = lowered.cost_analysis()["flops"], None
    if jax.default_backend() != "gpu":
        moved = calls * compiled.cost_analysis()["bytes accessed"]
    return compiled, Cost(seconds, calls * flops, moved, peak)


class TrainingStep:
    """A compiled update that keeps its state and waits for the loss, like PyTorch's `.item()`."""

    def __init__(self, step: Callable, state: Any, batch: tuple):
        """Compiles the step and puts the batch on the device."""
        self.program, self.cost = compile_program(step, (state, *batch), donate=0)
        self.state, self.batch = jax.device_put(state), jax.device_put(batch)

    def __call__(self) -> float:
        self.state, metrics = self.program(self.state, *self.batch)
        return float(metrics["loss"].total)


def cyclegan_update(settings, images: tuple[np.ndarray, np.ndarray], weights=None):
    """The step of stage `pair`.

    Args:
      settings: `config.pair`.
      images: the batch of each domain, uint8 `[B,H,W,3]`.
      weights: PyTorch weights of `a_to_b`, `b_to_a`, `a` and `b`; by default new ones.
    """
    optimizer = optimizers.make(settings.optimizer, total_steps=_STEPS)
    image = decode(images[0][:1])
    state = cyclegan.create_state(jax.random.key(0), settings, optimizer, image)
    if weights is not None:
        state = state.replace(
            generators=state.generators.replace(params=_gan(weights, state.generators.params)),
            discriminators=state.discriminators.replace(
                params=_gan(weights, state.discriminators.params)
            ),
        )
    step = functools.partial(cyclegan.train_step, settings=settings, optimizer=optimizer)
    return TrainingStep(step, state, (cyclegan.UnpairedBatch(*images),))


def adaptation_stream(config, count: int, classes: int) -> BatchStream:
    """The batches of stage `adapt` for `count` images per domain."""
    labels = np.arange(count, dtype=np.int32) % classes
    sizes = group_sizes(config.adapt.batch_size, [config.adapt.mix[group] for group in GROUPS])
    return BatchStream(labels, count, sizes, seed=0)


def adaptation_batch(config, count: int, classes: int) -> AdaptationBatch:
    """The first batch of `adaptation_stream`."""
    return adaptation_stream(config, count, classes).at(0)


def classifier(config, classes: int, weights: Mapping[str, np.ndarray] | None = None):
    """A classifier and its variables: new ones, or PyTorch's `weights`."""
    model = models.create_classifier(config.model, classes, config.adapt.attention)
    size = config.augment.crop or config.data.image_size
    image = jnp.zeros((1, size, size, 3))
    variables = jax.jit(lambda key: models.initial_variables(key, model, image))(jax.random.key(0))
    if weights is not None:
        variables = _fit(weights, NAMES[config.model.name], variables)
    return model, variables


def gathering(train_step):
    """Makes a step gather the batch's `Rows` from images on the device, as `Feed.bind` does."""
    return lambda state, images, batch: train_step(state, gather([images], batch))


def adaptation_step(config, model, variables, *arguments, bind=gathering):
    """The step of stage `adapt`, with EM active."""
    config.em.start_step = 0
    optimizer = optimizers.make(config.adapt.optimizer, total_steps=_STEPS, restart_every=_STEPS)
    state = adaptation.create_state(jax.random.key(1), variables, variables, optimizer)
    step = functools.partial(adaptation.train_step, model=model, optimizer=optimizer, config=config)
    return TrainingStep(bind(step), state, arguments)


class Translation:
    """Translates all images in batches, to uint8 arrays on the host."""

    def __init__(self, settings, images: np.ndarray, batch_size: int, weights):
        """Compiles the program."""
        generator, _ = models.create_gan(settings)
        shapes = jax.eval_shape(generator.init, jax.random.key(0), decode(images[:1]))
        self.params = jax.device_put(_fit(weights, GAN_NAMES, {"params": shapes["params"]}))
        self.images, self.batch_size = images, batch_size
        self.program, self.cost = compile_program(
            lambda params, batch: translation.encode(generator.apply(params, decode(batch))),
            (self.params, images[:batch_size]),
            calls=-(-len(images) // batch_size),
        )

    def __call__(self) -> float:
        made = [
            jax.device_get(self.program(self.params, self.images[first : first + self.batch_size]))
            for first in range(0, len(self.images), self.batch_size)
        ]
        return float(np.concatenate(made)[0].mean())


class Evaluation:
    """Mean confidence on all images, as evaluated after a round."""

    def __init__(self, config, model, variables, images: np.ndarray):
        """Compiles the program."""
        size = config.evaluate.batch_size
        _, self.cost = compile_program(
            lambda variables, batch: (
                evaluation.outputs(
                    model, variables, batch, config.augment, config.evaluate.crops
                ).posteriors
            ),
            (variables, images[:size]),
            calls=-(-len(images) // size),
        )
        self.evaluate = evaluation.make_evaluator(
            model, meshes.data_mesh(jax.devices()[:1]), config
        )
        self.variables = jax.device_put(variables)
        self.data = LabelledImages(images, np.zeros(len(images), np.int32))

    def __call__(self) -> float:
        return self.evaluate(self.variables, self.data).confidence


def _gan(weights, fresh):
    return {
        name: _fit(weights[name], GAN_NAMES, {"params": params})["params"]
        for name, params in fresh.items()
    }


def _fit(weights, names, variables):
    return pretrained.fit(weights, names, variables, Path("PyTorch"), whole=True)
