"""Section 3.1: Eq. 3 of both players, and the learning rate of CycleGAN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from consumed_keys import assert_drawn_once
from PIL import Image
from tiny import assert_same_bits, fast_jit, make_config, make_context, make_images, pool_twin

from daaa_jax import cyclegan, models
from daaa_jax.cyclegan import UnpairedBatch
from daaa_jax.data.augment import decode
from daaa_jax.evaluation import spread
from daaa_jax.runtime import metrics as metric_files
from daaa_jax.training import optimizers
from daaa_jax.training.image_pools import ImagePools

BATCH = 4
SIZE = 16  # of the images: the networks take any
A, B = make_images(6, seed=1, size=SIZE), make_images(9, seed=2, size=SIZE)
ROWS_A, ROWS_B = np.array([5, 0, 3, 3]), np.array([8, 7, 1, 4])
IMAGES = UnpairedBatch(A[ROWS_A], B[ROWS_B])
PLAIN = optax.sgd(1.0)  # parameters before minus after are the gradient


def settings_of(**changes):
    changes = {"pair.batch_size": BATCH} | {f"pair.{k}": v for k, v in changes.items()}
    return make_config(changes).pair


def make_state(settings):
    return initial_state(settings.pool_size)


@functools.cache
def initial_state(pool_size):
    return cyclegan.create_state(
        jax.random.key(0), settings_of(pool_size=pool_size), PLAIN, decode(A[:1])
    )


@functools.cache
def compiled_step(**changes):
    settings = settings_of(**changes)
    return fast_jit(functools.partial(cyclegan.train_step, settings=settings, optimizer=PLAIN))


def update(state, **changes):
    return compiled_step(**changes)(state, IMAGES)


def fill_pools(state):
    """Both pools full of images that no generator made."""
    pools = {
        domain: ImagePools(
            decode(make_images(pools.images.shape[1], seed, SIZE))[None],
            jnp.full(1, pools.images.shape[1]),
        )
        for seed, (domain, pools) in enumerate(state.discriminators.pools.items())
    }
    return state.replace(discriminators=state.discriminators.replace(pools=pools))


@pytest.mark.parametrize(("pool_size", "capacity"), [(0, 4), (3, 4), (4, 4), (50, 50)])
def test_pool_is_never_smaller_than_the_batch(pool_size, capacity):
    pools = make_state(settings_of(pool_size=pool_size)).discriminators.pools
    assert {p.images.shape for p in pools.values()} == {(1, capacity, SIZE, SIZE, 3)}


# Eq. 3


def lsgan_loss(params, images, real):
    """Eq. 1 of LSGAN, written out."""
    _, discriminator = models.create_gan(settings_of())
    logits = discriminator.apply({"params": params}, images)
    return jnp.mean((logits - (1.0 if real else 0.0)) ** 2)


def translated(params, images):
    generator, _ = models.create_gan(settings_of())
    return generator.apply({"params": params}, images)


def generators_twin(params, discriminators, cycle_weight, identity_weight):
    a, b = decode(A[ROWS_A]), decode(B[ROWS_B])
    ab, ba = params["a_to_b"], params["b_to_a"]
    adversarial = lsgan_loss(discriminators["b"], translated(ab, a), True)
    adversarial += lsgan_loss(discriminators["a"], translated(ba, b), True)
    cycle = jnp.abs(translated(ba, translated(ab, a)) - a).mean()
    cycle += jnp.abs(translated(ab, translated(ba, b)) - b).mean()
    identity = jnp.abs(translated(ab, b) - b).mean() + jnp.abs(translated(ba, a) - a).mean()
    total = adversarial + cycle_weight * cycle + cycle_weight * identity_weight * identity
    return total, (adversarial, cycle)


def discriminators_twin(params, replayed_a, replayed_b):
    real = lsgan_loss(params["a"], decode(A[ROWS_A]), True)
    real += lsgan_loss(params["b"], decode(B[ROWS_B]), True)
    fake = lsgan_loss(params["a"], replayed_a, False) + lsgan_loss(params["b"], replayed_b, False)
    return (real + fake) / 2


def assert_moved_by(before, after, gradient):
    """Parameters went down by the gradient, up to rounding."""
    for old, new, slope in zip(*map(jax.tree.leaves, (before, after, gradient)), strict=True):
        np.testing.assert_allclose(old - new, slope, atol=2e-5 * max(1, abs(slope).max()))


@pytest.mark.parametrize("changes", [{}, {"cycle_weight": 4.0, "identity_weight": 0.5}])
def test_step_descends_the_objectives_of_both_players(changes):
    settings = settings_of(**changes)
    before = fill_pools(make_state(settings))
    after, metrics = update(before, **changes)

    old, discriminators = before.generators.params, before.discriminators.params
    (total, (adversarial, cycle)), gradient = fast_jit(
        jax.value_and_grad(
            lambda p: generators_twin(
                p, discriminators, settings.cycle_weight, settings.identity_weight
            ),
            has_aux=True,
        )
    )(old)
    assert_moved_by(old, after.generators.params, gradient)

    # The discriminators see translations from before the update, replayed from the pools.
    replayed = {}
    _, _, *keys = jax.random.split(jax.random.fold_in(before.key, before.step), 4)
    for domain, key, fakes in (
        ("a", keys[0], translated(old["b_to_a"], decode(B[ROWS_B]))),
        ("b", keys[1], translated(old["a_to_b"], decode(A[ROWS_A]))),
    ):
        (pool,) = before.discriminators.pools[domain].images
        replayed[domain] = np.array(pool_twin(list(pool), len(pool), fakes, key))
    loss, discriminator_gradient = fast_jit(jax.value_and_grad(discriminators_twin))(
        discriminators, replayed["a"], replayed["b"]
    )
    assert_moved_by(discriminators, after.discriminators.params, discriminator_gradient)

    assert after.step == before.step + 1
    wanted = {"loss": total, "adversarial": adversarial, "cycle": cycle, "discriminator": loss}
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name].compute(), value, rtol=1e-5, err_msg=name)


def test_default_is_lsgan_with_cycle_weight_10_and_no_identity_term():
    before = make_state(settings_of())
    _, metrics = update(before)
    total, _ = generators_twin(before.generators.params, before.discriminators.params, 10.0, 0.0)
    np.testing.assert_allclose(metrics["loss"].compute(), total, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lsgan", "vanilla"])
def test_adversarial_loss_is_a_setting(kind):
    settings = settings_of(adversarial=kind)
    step = functools.partial(cyclegan.train_step, settings=settings, optimizer=PLAIN)
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cyclegan.losses,
            "adversarial_loss",
            lambda logits, is_real, kind: asked.append((is_real, kind)) or logits.mean(),
        )
        jax.eval_shape(step, make_state(settings), IMAGES)
    # Twice by the generators, as real; then by each discriminator, real and fake.
    assert asked == [(True, kind)] * 2 + [(True, kind), (False, kind)] * 2


def test_generators_objective_does_not_move_the_discriminators():
    before = make_state(settings_of())
    (usual, _), (other, _) = update(before), update(before, cycle_weight=4.0, identity_weight=0.5)
    assert_same_bits(usual.discriminators, other.discriminators)
    with pytest.raises(AssertionError):
        assert_same_bits(usual.generators, other.generators)


def test_discriminators_objective_does_not_move_the_generators():
    before = make_state(settings_of())
    (usual, _), (replayed_others, _) = update(before), update(fill_pools(before))
    assert_same_bits(usual.generators, replayed_others.generators)
    with pytest.raises(AssertionError):
        assert_same_bits(usual.discriminators.params, replayed_others.discriminators.params)


# The learning rate and the run


def test_learning_rate_is_constant_then_falls_linearly_to_zero():
    settings = settings_of()
    optimizer = optimizers.make(settings.optimizer, total_steps=10)
    state, rates = optimizer.init(jnp.zeros(())), []
    for _ in range(10):
        # Under a constant gradient of 1 a step of Adam is as long as the learning rate.
        change, state = optimizer.update(jnp.ones(()), state)
        rates.append(-float(change))
    wanted = [1] * 6 + [0.8, 0.6, 0.4, 0.2]
    np.testing.assert_allclose(rates, 2e-4 * np.array(wanted), rtol=1e-4)


def test_an_epoch_is_one_of_the_larger_domain_and_ends_with_a_picture(tmp_path):
    config = make_config({"pair.batch_size": BATCH, "pair.epochs": 2})
    with make_context(tmp_path, config) as context:
        params, _ = cyclegan.run(config.pair, A, B, context)
    lines = metric_files.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert params.keys() == {"a_to_b", "b_to_a"}

    # Six rows of as many images as there are, at most eight; the first shows them as they are.
    pixels = np.asarray(Image.open(tmp_path / "pair" / "pairs.png"))
    gap, scale = 2, 2
    sides = [scale * (count * (SIZE + gap) + gap) for count in (6, len(A))]
    assert pixels.shape == (*sides, 3)
    first = slice(scale * gap, scale * (gap + SIZE), scale)
    np.testing.assert_array_equal(pixels[first, first], A[0])
    # The larger domain's are spread over it.
    row, last = (
        slice(scale * (n * (SIZE + gap) + gap), scale * (n + 1) * (SIZE + gap), scale)
        for n in (3, len(A) - 1)
    )
    np.testing.assert_array_equal(pixels[row, last], B[spread(len(B), len(A))[-1]])


def test_picture_shows_each_domain_its_translation_and_the_way_back():
    params = make_state(settings_of()).generators.params
    a, b = decode(A[:3]), decode(B[:3])
    rows = cyclegan.four_tuples(params, a, b, settings=settings_of())
    there = functools.partial(translated, params["a_to_b"])
    back = functools.partial(translated, params["b_to_a"])
    wanted = [a, there(a), back(there(a)), b, back(b), there(back(b))]
    np.testing.assert_allclose(rows, np.stack(wanted), atol=1e-6)


def test_images_that_the_generator_cannot_halve_are_refused(tmp_path):
    config = make_config({"pair.downsamplings": 5})
    with (
        make_context(tmp_path, config) as context,
        pytest.raises(ValueError, match=r"16x16.*pair\.downsamplings=5"),
    ):
        cyclegan.run(config.pair, A, B, context)


def test_views_and_pools_are_drawn_from_separate_keys(monkeypatch):
    """Draws within a pool have keys that were split for it."""
    settings, state, seen = settings_of(flip=True, enlarge=20), make_state(settings_of()), []
    monkeypatch.setattr(
        cyclegan,
        "replay",
        lambda pools, images, key: (seen.append(jax.random.uniform(key)), (pools, images))[1],
    )
    assert_drawn_once(
        monkeypatch,
        lambda: cyclegan.train_step(state, IMAGES, settings=settings, optimizer=PLAIN),
    )
    assert len(seen) == 2
