"""Stage `pair`: CycleGAN learns to translate each domain's images into the other's style (3.1).

The two domains are called `a` and `b`, in alphabetical order of their names, so that one CycleGAN
serves both directions of adaptation: the paper's G_ST is `a_to_b` where the source domain is `a`.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax import losses, models
from daaa_jax.data.augment import decode, random_view
from daaa_jax.data.batches import IndexStream
from daaa_jax.errors import UserError
from daaa_jax.runtime import image_grid
from daaa_jax.runtime import mesh as meshes
from daaa_jax.training import loop, optimizers
from daaa_jax.training.context import Context
from daaa_jax.training.feed import Feed, take

Params = Mapping[str, Any]


@struct.dataclass
class ImagePools:
    """Past translations: `images` `[k,P,H,W,3]`, of which the first `filled` of each hold one."""

    images: Array
    filled: Array


def empty_pools(count: int, size: int, image_shape: Sequence[int]) -> ImagePools:
    """Pools that hold nothing yet.

    Args:
      count: how many, k.
      size: of all together at least.
      image_shape: `(H, W, 3)`.
    """
    each = math.ceil(size / count)
    return ImagePools(jnp.zeros((count, each, *image_shape)), jnp.zeros(count, jnp.int32))


def replay(pools: ImagePools, images: Array, key: Array) -> tuple[ImagePools, Array]:
    """Shows the discriminator past translations as well as present ones (Shrivastava et al., 2017).

    One image after another: while its pool is not full, the image enters it and is shown;
    then, with probability a half, a random one of the pool is shown, and the image replaces it.
    Each of the k pools takes B / k neighbouring images of the batch. The original has one pool,
    for which every device needs the images of all others.

    Args:
      pools: the pools before.
      images: the present translations, `[B,H,W,3]`; k divides B.
      key: a PRNG key.

    Returns:
      The pools after, and the images to show, `[B,H,W,3]`.
    """
    count, size = pools.images.shape[:2]

    def visit(pool: ImagePools, item: tuple[Array, Array]) -> tuple[ImagePools, Array]:
        image, key = item
        slot_key, coin_key = jax.random.split(key)
        filling = pool.filled < size
        swaps = jax.random.bernoulli(coin_key) & ~filling
        slot = jnp.where(filling, pool.filled, jax.random.randint(slot_key, (), 0, size))
        old = pool.images[slot]
        stored = jnp.where(filling | swaps, image, old)
        after = ImagePools(pool.images.at[slot].set(stored), pool.filled + filling)
        return after, jnp.where(swaps, old, image)

    def divide(batch: Array) -> Array:
        return batch.reshape(count, -1, *batch.shape[1:])

    items = divide(images), divide(jax.random.split(key, len(images)))
    pools, shown = jax.vmap(functools.partial(jax.lax.scan, visit))(pools, items)
    return pools, shown.reshape(images.shape)


@struct.dataclass
class GeneratorState:
    """Parameters of `a_to_b` and `b_to_a`, and the optimiser of both."""

    params: Mapping[str, Params]
    opt_state: optax.OptState


@struct.dataclass
class DiscriminatorState:
    """Parameters of the discriminators of `a` and `b`, their optimiser, and pools for each."""

    params: Mapping[str, Params]
    opt_state: optax.OptState
    pools: Mapping[str, ImagePools]


@struct.dataclass
class PairingState:
    """The state of stage `pair`: `step` updates made, generators and discriminators."""

    step: Array
    key: Array
    generators: GeneratorState
    discriminators: DiscriminatorState


def create_state(
    key: Array,
    settings: ConfigDict,
    optimizer: optax.GradientTransformation,
    image: Array,
) -> PairingState:
    """A fresh state; `image` is float32 `[1,H,W,3]` and gives the images' shape alone."""
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
    return PairingState(
        step=jnp.int32(0),
        key=keys[4],
        generators=GeneratorState(generators, optimizer.init(generators)),
        discriminators=DiscriminatorState(discriminators, optimizer.init(discriminators), pools),
    )


def train_step(
    state: PairingState,
    images_a: Array | None,
    images_b: Array | None,
    rows_a: Array,
    rows_b: Array,
    *,
    settings: ConfigDict,
    optimizer: optax.GradientTransformation,
) -> tuple[PairingState, loop.Metrics]:
    """One update of both generators, then one of both discriminators (Eq. 3).

    Args:
      state: before the update.
      images_a: all training images of domain a, uint8 `[N_a,H,W,3]`; or None, see `feed.take`.
      images_b: all training images of domain b, uint8 `[N_b,H,W,3]`; or None.
      rows_a: those in the batch, int32 `[B]`; or the images themselves.
      rows_b: likewise for b.
      settings: `config.pair`.
      optimizer: as `create_state` was given.
    """
    generator, discriminator = models.create_gan(settings)
    key_a, key_b, pool_key_a, pool_key_b = jax.random.split(
        jax.random.fold_in(state.key, state.step), 4
    )
    a = _view(key_a, decode(take(images_a, rows_a)), settings)
    b = _view(key_b, decode(take(images_b, rows_b)), settings)

    def translate(params: Params, images: Array) -> Array:
        return generator.apply({"params": params}, images)

    def adversarial(params: Params, images: Array, is_real: bool) -> Array:
        logits = discriminator.apply({"params": params}, images)
        return losses.adversarial_loss(logits, is_real, settings.adversarial)

    def generator_objective(params, judges):
        fake_b, fake_a = translate(params["a_to_b"], a), translate(params["b_to_a"], b)
        fooled = adversarial(judges["b"], fake_b, True) + adversarial(judges["a"], fake_a, True)
        cycle = losses.cycle_loss(a, translate(params["b_to_a"], fake_b)) + losses.cycle_loss(
            b, translate(params["a_to_b"], fake_a)
        )
        total = fooled + settings.cycle_weight * cycle
        if settings.identity_weight:
            identity = losses.cycle_loss(b, translate(params["a_to_b"], b)) + losses.cycle_loss(
                a, translate(params["b_to_a"], a)
            )
            total += settings.identity_weight * settings.cycle_weight * identity
        return total, (fooled, cycle, fake_a, fake_b)

    def discriminator_objective(params, shown):
        loss = 0.0
        for domain, real in (("a", a), ("b", b)):
            # The released CycleGAN halves the discriminators' objective to slow them down.
            loss += 0.5 * adversarial(params[domain], real, True)
            loss += 0.5 * adversarial(params[domain], shown[domain], False)
        return loss

    generators, discriminators = state.generators, state.discriminators
    (total, (fooled, cycle, fake_a, fake_b)), gradient = jax.value_and_grad(
        generator_objective, has_aux=True
    )(generators.params, discriminators.params)
    generators = generators.replace(
        **_update(optimizer, gradient, generators.opt_state, generators.params)
    )

    pools, shown = {}, {}
    pools["a"], shown["a"] = replay(discriminators.pools["a"], fake_a, pool_key_a)
    pools["b"], shown["b"] = replay(discriminators.pools["b"], fake_b, pool_key_b)
    judged, judge_gradient = jax.value_and_grad(discriminator_objective)(
        discriminators.params, shown
    )
    discriminators = discriminators.replace(
        pools=pools,
        **_update(optimizer, judge_gradient, discriminators.opt_state, discriminators.params),
    )
    metrics = {
        "loss": total,
        "adversarial": fooled,
        "cycle": cycle,
        "discriminator": judged,
        "grad_norm": optax.tree.norm((gradient, judge_gradient)),
    }
    state = state.replace(step=state.step + 1, generators=generators, discriminators=discriminators)
    return state, {name: loop.mean(value) for name, value in metrics.items()}


def _view(key: Array, images: Array, settings: ConfigDict) -> Array:
    """CycleGAN's own augmentation: enlarged, a random part of the old size, perhaps flipped."""
    size = images.shape[1]
    if settings.enlarge:
        shape = (len(images), settings.enlarge, settings.enlarge, images.shape[-1])
        images = jax.image.resize(images, shape, "bilinear")
    how = ConfigDict({"shift": 0, "crop": size, "flip": settings.flip})
    return random_view(key, images, how)


def _update(optimizer, gradient, opt_state, params) -> dict[str, Any]:
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return {"params": optax.apply_updates(params, updates), "opt_state": opt_state}


def run(
    config: ConfigDict,
    images_a: np.ndarray,
    images_b: np.ndarray,
    context: Context,
) -> tuple[Mapping[str, Params], Mapping[str, Any]]:
    """Trains the CycleGAN of a pair of domains, or goes on with it.

    Args:
      config: the whole config; `pair` is read.
      images_a: the training images of the domain whose name sorts first, uint8 `[N_a,H,W,3]`.
      images_b: those of the other domain, uint8 `[N_b,H,W,3]`.
      context: the surroundings of the run.

    Returns:
      The generators' parameters, `a_to_b` and `b_to_a`, and the loop's memory.

    Raises:
      UserError: if the batch size does not suit the devices, or the images do not suit the network.
    """
    settings, mesh = config.pair, context.mesh
    size = images_a.shape[1:3]
    if any(side % 2**settings.downsamplings for side in size):
        raise UserError(
            f"pair.downsamplings={settings.downsamplings} halves {size[0]}x{size[1]} images into "
            f"uneven sizes; use fewer, or images whose sides {2**settings.downsamplings} divides"
        )
    epoch = math.ceil(max(len(images_a), len(images_b)) / settings.batch_size)
    steps = settings.epochs * epoch
    optimizer = optimizers.make(settings.optimizer, total_steps=steps)
    streams = [
        IndexStream(len(images), settings.batch_size, settings.seed, f"pair {domain}")
        for domain, images in (("a", images_a), ("b", images_b))
    ]
    feed = Feed(
        (images_a, images_b),
        functools.partial(_rows, streams),
        _images,
        steps=steps,
        mesh=mesh,
        settings=context.settings,
    )
    step = functools.partial(train_step, settings=settings, optimizer=optimizer)
    picture = jax.jit(
        functools.partial(four_tuples, settings=settings), out_shardings=meshes.replicated(mesh)
    )
    shown = min(8, len(images_a), len(images_b))
    examples = tuple(
        np.asarray(decode(images[_spread(images, shown)])) for images in (images_a, images_b)
    )

    def end_of_round(step, state, metrics, memory):
        grid = image_grid.grid(np.asarray(picture(state.generators.params, *examples)))
        context.writer.image("pair", step, "pairs", grid)
        image_grid.write_png(context.workdir / "pair" / "pairs.png", grid)
        return {name: float(metrics[name].compute()) for name in ("adversarial", "cycle")}

    state, memory = loop.run(
        "pair",
        functools.partial(
            create_state,
            loop.stage_key(settings.seed, "pair"),
            settings,
            optimizer,
            decode(images_a[:1]),
        ),
        step,
        feed.at,
        steps=steps,
        round_steps=epoch,
        end_of_round=end_of_round,
        context=context,
        shardings=state_shardings,
        reduce="pair.batch_size, pair.filters, pair.blocks or data.image_size",
    )
    return state.generators.params, memory


def state_shardings(shapes: PairingState, mesh: Mesh) -> PairingState:
    """As `mesh.state_shardings`, but pools lie where their images come from, if it divides them.

    Others lie whole on every device: split by rows of pixels over the axis `shards`, XLA's
    partitioner gave the discriminators other images than those drawn.
    """
    shardings = meshes.state_shardings(shapes, mesh)
    pools = shapes.discriminators.pools
    divided = len(pools["a"].filled) % mesh.size == 0
    place = meshes.batch_sharded(mesh) if divided else meshes.replicated(mesh)
    pools = jax.tree.map(lambda _: place, pools)
    return shardings.replace(discriminators=shardings.discriminators.replace(pools=pools))


def _rows(streams, step):
    return tuple(stream.at(step) for stream in streams)


def _images(domains, rows):
    return tuple(images[chosen] for images, chosen in zip(domains, rows, strict=True))


def _spread(images, count: int) -> np.ndarray:
    """Rows from the first to the last: photos lie by class, and a picture shows several."""
    return np.linspace(0, len(images) - 1, count).round().astype(int)


def four_tuples(params: Mapping[str, Params], a: Array, b: Array, *, settings: ConfigDict) -> Array:
    """Each image, its translation and the way back, for both domains: `[6,B,H,W,3]` in [-1,1].

    Rows: a, a→b, a→b→a, then b, b→a, b→a→b.
    """
    generator, _ = models.create_gan(settings)
    there, back = (
        functools.partial(generator.apply, {"params": params[name]})
        for name in ("a_to_b", "b_to_a")
    )
    fake_b, fake_a = there(a), back(b)
    return jnp.stack([a, fake_b, back(fake_b), b, fake_a, there(fake_a)])
