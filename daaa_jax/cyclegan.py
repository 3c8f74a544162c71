"""Stage `pair`: CycleGAN learns to translate each domain's images into the other's style (3.1).

The two domains are called `a` and `b`, in alphabetical order of their names, so that one CycleGAN
serves both directions of adaptation: the paper's G_ST is `a_to_b` where the source domain is `a`.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax import losses, models
from daaa_jax.data.augment import decode, encode, random_view
from daaa_jax.data.batches import ImagesOrRows, IndexStream, Rows
from daaa_jax.data.types import ImageArray
from daaa_jax.evaluation import spread
from daaa_jax.runtime import image_grid
from daaa_jax.runtime import mesh as meshes
from daaa_jax.training import loop, optimizers
from daaa_jax.training.context import Context
from daaa_jax.training.feed import Feed
from daaa_jax.training.image_pools import ImagePools, empty_pools, replay

Params = Mapping[str, Any]


class UnpairedBatch(struct.PyTreeNode, Generic[ImagesOrRows]):
    """Images of both domains, uint8 `[B,H,W,3]`, or their `Rows` until they are gathered."""

    a: ImagesOrRows
    b: ImagesOrRows


class GeneratorState(struct.PyTreeNode):
    """Parameters of `a_to_b` and `b_to_a`, and the optimiser of both."""

    params: Mapping[str, Params]
    opt_state: optax.OptState


class DiscriminatorState(struct.PyTreeNode):
    """Parameters of the discriminators of `a` and `b`, their optimiser, and pools for each."""

    params: Mapping[str, Params]
    opt_state: optax.OptState
    pools: Mapping[str, ImagePools]


class CycleGanState(struct.PyTreeNode):
    """The state of stage `pair`: `step` updates made, generators and discriminators."""

    step: Array
    key: Array
    generators: GeneratorState
    discriminators: DiscriminatorState


def create_state(
    key: Array, settings: ConfigDict, optimizer: optax.GradientTransformation, image: Array
) -> CycleGanState:
    """The initial state; `image`, float32 `[1,H,W,3]`, is used for its shape alone."""
    generator, discriminator = models.create_gan(settings)
    keys = jax.random.split(key, 5)
    generators = {
        "a_to_b": generator.init(keys[0], image)["params"],
        "b_to_a": generator.init(keys[1], image)["params"],
    }
    discriminators = {
        "a": discriminator.init(keys[2], image)["params"],
        "b": discriminator.init(keys[3], image)["params"],
    }
    size = max(settings.pool_size, settings.batch_size)
    pools = {domain: empty_pools(settings.pools, size, image.shape[1:]) for domain in "ab"}
    return CycleGanState(
        step=jnp.int32(0),
        key=keys[4],
        generators=GeneratorState(generators, optimizer.init(generators)),
        discriminators=DiscriminatorState(discriminators, optimizer.init(discriminators), pools),
    )


def generator_loss(
    params: Mapping[str, Params],
    discriminators: Mapping[str, Params],
    a: Array,
    b: Array,
    settings: ConfigDict,
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """The loss of both generators (Eq. 3, with the identity term of the released CycleGAN).

    Args:
      params: of the generators `a_to_b` and `b_to_a`.
      discriminators: parameters of the discriminators of `a` and `b`.
      a: images of domain a, float32 `[B,H,W,3]` in [-1, 1].
      b: images of domain b.
      settings: `config.pair`.

    Returns:
      The loss; its adversarial and cycle parts, G_ba(b) and G_ab(a).
    """
    generator, _ = models.create_gan(settings)

    def translate(direction: str, images: Array) -> Array:
        return generator.apply({"params": params[direction]}, images)

    fake_b, fake_a = translate("a_to_b", a), translate("b_to_a", b)
    adversarial = models.adversarial_loss(settings, discriminators["b"], fake_b, True)
    adversarial += models.adversarial_loss(settings, discriminators["a"], fake_a, True)
    cycle = losses.cycle_loss(a, translate("b_to_a", fake_b))
    cycle += losses.cycle_loss(b, translate("a_to_b", fake_a))
    total = adversarial + settings.cycle_weight * cycle
    if settings.identity_weight:
        identity = losses.cycle_loss(b, translate("a_to_b", b))
        identity += losses.cycle_loss(a, translate("b_to_a", a))
        total += settings.identity_weight * settings.cycle_weight * identity
    return total, (adversarial, cycle, fake_a, fake_b)


def discriminator_loss(
    params: Mapping[str, Params],
    real: Mapping[str, Array],
    replayed: Mapping[str, Array],
    settings: ConfigDict,
) -> Array:
    """The loss of both discriminators (Eq. 1), halved as in the released CycleGAN.

    Args:
      params: of the discriminators of `a` and `b`.
      real: by domain, images, float32 `[B,H,W,3]`.
      replayed: by domain, translations from the pools.
      settings: `config.pair`.
    """
    return losses.total(
        0.5 * models.adversarial_loss(settings, params[domain], images[domain], is_real)
        for domain in ("a", "b")
        for images, is_real in ((real, True), (replayed, False))
    )


def train_step(
    state: CycleGanState,
    batch: UnpairedBatch[Array],
    *,
    settings: ConfigDict,
    optimizer: optax.GradientTransformation,
) -> tuple[CycleGanState, loop.Metrics]:
    """One update of both generators, then one of both discriminators (Eq. 3).

    Args:
      batch: uint8 images of both domains.
      settings: `config.pair`.
      optimizer: the same as for `create_state`.
    """
    step_key = jax.random.fold_in(state.key, state.step)
    key_a, key_b, pool_key_a, pool_key_b = jax.random.split(step_key, 4)
    a = _augmented(key_a, decode(batch.a), settings)
    b = _augmented(key_b, decode(batch.b), settings)

    generators, discriminators = state.generators, state.discriminators
    (total, (adversarial, cycle, fake_a, fake_b)), g_gradient = jax.value_and_grad(
        generator_loss, has_aux=True
    )(generators.params, discriminators.params, a, b, settings)
    generators = _updated(optimizer, g_gradient, generators)

    pools, replayed = {}, {}
    pools["a"], replayed["a"] = replay(discriminators.pools["a"], fake_a, pool_key_a)
    pools["b"], replayed["b"] = replay(discriminators.pools["b"], fake_b, pool_key_b)
    d_loss, d_gradient = jax.value_and_grad(discriminator_loss)(
        discriminators.params, {"a": a, "b": b}, replayed, settings
    )
    discriminators = _updated(optimizer, d_gradient, discriminators).replace(pools=pools)
    metrics = {
        "loss": total,
        "adversarial": adversarial,
        "cycle": cycle,
        "discriminator": d_loss,
        "grad_norm": optax.tree.norm((g_gradient, d_gradient)),
    }
    state = state.replace(step=state.step + 1, generators=generators, discriminators=discriminators)
    return state, {name: loop.mean(value) for name, value in metrics.items()}


def _augmented(key: Array, images: Array, settings: ConfigDict) -> Array:
    """CycleGAN's augmentation: enlarging, a random crop of the original size, a random flip."""
    size = images.shape[1]
    if settings.enlarge:
        shape = (len(images), settings.enlarge, settings.enlarge, images.shape[-1])
        images = jax.image.resize(images, shape, "bilinear")
    augment = ConfigDict({"shift": 0, "crop": size, "area": 1.0, "flip": settings.flip})
    return random_view(key, images, augment)


def _updated(optimizer, gradient, networks):
    """The state of both generators or both discriminators after an update."""
    updates, opt_state = optimizer.update(gradient, networks.opt_state, networks.params)
    params = optax.apply_updates(networks.params, updates)
    return networks.replace(params=params, opt_state=opt_state)


def run(
    settings: ConfigDict, images_a: ImageArray, images_b: ImageArray, context: Context
) -> tuple[Mapping[str, Params], Mapping[str, Any]]:
    """Trains the CycleGAN of a pair of domains, or resumes it.

    Args:
      settings: `config.pair`.
      images_a: the training images of the domain whose name sorts first, uint8 `[N_a,H,W,3]`.
      images_b: those of the other domain, uint8 `[N_b,H,W,3]`.

    Returns:
      The generators' parameters, `a_to_b` and `b_to_a`, and the loop state.

    Raises:
      ValueError: if the images cannot be halved `pair.downsamplings` times.
    """
    epoch = math.ceil(max(len(images_a), len(images_b)) / settings.batch_size)
    steps = settings.epochs * epoch
    optimizer = optimizers.make(settings.optimizer, total_steps=steps)
    streams = [
        IndexStream(len(images), settings.batch_size, settings.seed, f"pair {domain}")
        for domain, images in (("a", images_a), ("b", images_b))
    ]

    def batch_at(step: int) -> UnpairedBatch[Rows]:
        return UnpairedBatch(*(Rows(stream.at(step), n) for n, stream in enumerate(streams)))

    feed = Feed((images_a, images_b), batch_at, steps, context.mesh, context.settings)
    key, image = loop.stage_key(settings.seed, "pair"), decode(images_a[:1])
    state, loop_state = loop.run(
        "pair",
        functools.partial(create_state, key, settings, optimizer, image),
        functools.partial(train_step, settings=settings, optimizer=optimizer),
        feed,
        images=2 * settings.batch_size,
        round_steps=epoch,
        end_of_round=_pair_sheet(settings, images_a, images_b, context),
        context=context,
        shardings=state_shardings,
        reduce="pair.batch_size, pair.filters, pair.blocks or data.image_size",
    )
    return state.generators.params, loop_state


def state_shardings(shapes: CycleGanState, mesh: Mesh) -> CycleGanState:
    """Like `mesh.state_shardings`, but pools are split like batches if the mesh divides them.

    Otherwise they are replicated: with pools split by rows of pixels over the axis `shards`, XLA's
    partitioner gave the discriminators other images than those drawn.
    """
    shardings = meshes.state_shardings(shapes, mesh)
    pools = shapes.discriminators.pools
    divided = len(pools["a"].filled) % mesh.size == 0
    place = meshes.batch_sharded(mesh) if divided else meshes.replicated(mesh)
    pools = jax.tree.map(lambda _: place, pools)
    return shardings.replace(discriminators=shardings.discriminators.replace(pools=pools))


def _pair_sheet(settings: ConfigDict, images_a, images_b, context: Context):
    """Makes a function that draws `pair/pairs.png` at the end of each epoch."""
    shown = min(8, len(images_a), len(images_b))
    examples = [np.asarray(decode(x[spread(len(x), shown)])) for x in (images_a, images_b)]
    draw = jax.jit(
        lambda *inputs: encode(four_tuples(*inputs, settings=settings)),
        out_shardings=meshes.replicated(context.mesh),
    )

    def end_of_epoch(step, state, metrics, loop_state) -> dict[str, float]:
        grid = image_grid.grid(np.asarray(draw(state.generators.params, *examples)))
        context.writer.image("pair", step, "pairs", grid)
        image_grid.write_png(context.workdir.pair_sheet, grid)
        return {name: float(metrics[name].compute()) for name in ("adversarial", "cycle")}

    return end_of_epoch


def four_tuples(params: Mapping[str, Params], a: Array, b: Array, *, settings: ConfigDict) -> Array:
    """Images, translations and reconstructions of both domains, `[6,B,H,W,3]` in [-1,1].

    Rows: a, a→b, a→b→a, then b, b→a, b→a→b.
    """
    generator, _ = models.create_gan(settings)
    a_to_b, b_to_a = (
        functools.partial(generator.apply, {"params": params[name]})
        for name in ("a_to_b", "b_to_a")
    )
    fake_b, fake_a = a_to_b(a), b_to_a(b)
    return jnp.stack([a, fake_b, b_to_a(fake_b), b, fake_a, a_to_b(fake_a)])
