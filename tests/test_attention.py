"""Attention maps and their distance agree with slow NumPy twins, and behave where maps agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.optimize import approx_fprime

from daaa_jax import attention, losses

KINDS = ("sum_squares", "sum_abs", "max_abs", "features")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def positive(seed, *shape):
    return np.abs(normal(seed, *shape))


def map_twin(features, kind):
    maps = []
    for image in features.astype(np.float64):
        entries = []
        for row in image:
            for channels in row:
                match kind:
                    case "sum_squares":
                        entries.append(sum(c * c for c in channels))
                    case "sum_abs":
                        entries.append(sum(abs(c) for c in channels))
                    case "max_abs":
                        entries.append(max(abs(c) for c in channels))
                    case "features":
                        entries.extend(channels)
        maps.append(entries)
    return np.array(maps)


def distance_twin(source, target, measure):
    source, target = source.astype(np.float64), target.astype(np.float64)
    distances = []
    for s, t in zip(source, target, strict=True):
        difference = s / np.sqrt((s * s).sum()) - t / np.sqrt((t * t).sum())
        l2, l1 = np.sqrt((difference**2).sum()), np.abs(difference).sum()
        distances.append(l2 if measure == "l2" else l1)
    return np.array(distances)


@functools.partial(jax.jit, static_argnums=2)
def distance_gradient(source, target, measure):
    """Gradient of the summed distances with respect to the target maps."""
    return jax.grad(
        lambda maps: attention.attention_distance(source, maps, measure).sum(),
    )(target)


distance = jax.jit(attention.attention_distance, static_argnums=2)
mmd, jmmd = jax.jit(losses.mmd), jax.jit(losses.jmmd)
alignment = jax.jit(attention.alignment_loss, static_argnums=(2, 3))


# Eq. 4


@pytest.mark.parametrize("kind", KINDS)
def test_attention_map_aggregates_channels(kind):
    features = normal(0, 2, 3, 4, 5)
    maps = jax.jit(attention.attention_map, static_argnums=1)(features, kind)
    np.testing.assert_allclose(maps, map_twin(features, kind), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_map_has_the_right_gradient(kind):
    features, weights = normal(1, 2, 2, 3, 4), normal(2, 2, 24 if kind == "features" else 6)
    want = approx_fprime(
        features.ravel().astype(np.float64),
        lambda x: (weights * map_twin(x.reshape(features.shape), kind)).sum(),
        epsilon=1e-6,
    )
    gradient = jax.jit(jax.grad(lambda x: (weights * attention.attention_map(x, kind)).sum()))
    np.testing.assert_allclose(gradient(features).ravel(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_map_of_bfloat16_features_is_float32(kind):
    features = normal(3, 2, 3, 4, 5).astype(jnp.bfloat16)
    maps = attention.attention_map(features, kind)
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, map_twin(features, kind), rtol=1e-5)


@pytest.mark.parametrize("kind", ["sum_squares", "sum_abs", "max_abs"])
def test_features_that_are_zero_have_no_gradient(kind):
    features = jnp.zeros((1, 2, 2, 3))
    gradient = jax.jit(jax.grad(lambda x: attention.attention_map(x, kind).sum()))(features)
    assert not np.asarray(gradient).any()


def test_wrong_features_or_kind_are_errors():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        attention.attention_map(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"adapt\.attention.*mean.*sum_squares"):
        attention.attention_map(jnp.zeros((1, 2, 2, 3)), "mean")


# Eq. 5


@pytest.mark.parametrize("measure", ["l2", "l1"])
def test_distance_is_the_norm_of_the_difference_of_normalised_maps(measure):
    source, target = positive(4, 5, 30), positive(5, 5, 30)
    want = distance_twin(source, target, measure)
    np.testing.assert_allclose(distance(source, target, measure), want, rtol=1e-4)


@pytest.mark.parametrize("measure", ["l2", "l1"])
def test_distance_has_the_right_gradient(measure):
    source, target = positive(6, 3, 10), positive(7, 3, 10)
    want = approx_fprime(
        target.ravel().astype(np.float64),
        lambda x: distance_twin(source, x.reshape(target.shape), measure).sum(),
        epsilon=1e-7,
    )
    gradient = distance_gradient(source, target, measure)
    np.testing.assert_allclose(gradient.ravel(), want, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("measure", ["l2", "l1"])
@pytest.mark.parametrize("scale", [1e-15, 1e-6, 3.0, 1e30])
def test_distance_does_not_depend_on_the_scale_of_a_map(measure, scale):
    source, target = positive(8, 3, 30), positive(9, 3, 30)
    want = distance(source, target, measure)
    scaled = np.float32(scale) * target
    np.testing.assert_allclose(distance(source, scaled, measure), want, rtol=1e-5)
    np.testing.assert_allclose(
        distance_gradient(source, scaled, measure) * scale,
        distance_gradient(source, target, measure),
        rtol=1e-3,
        atol=1e-6,
    )


def test_l2_distance_lies_between_zero_and_two():
    source = positive(10, 4, 30)
    np.testing.assert_allclose(distance(source, -source, "l2"), 2, rtol=1e-6)
    np.testing.assert_allclose(distance(source, source, "l2"), 0, atol=2e-4)


@pytest.mark.parametrize("measure", ["l2", "l1"])
@pytest.mark.parametrize("size", [16, 1024])
@pytest.mark.parametrize("noise", [0, 1e-7])
def test_gradient_vanishes_where_maps_agree_up_to_rounding(measure, size, noise):
    maps, other = positive(11, 4, size), positive(12, 4, size)
    equal = maps * (1 + np.float32(noise) * np.sign(normal(13, 4, size)))
    agreeing = np.linalg.norm(distance_gradient(maps, equal, measure))
    assert agreeing < 0.002 * np.linalg.norm(distance_gradient(maps, other, measure))


@pytest.mark.parametrize("measure", ["l2", "l1"])
def test_all_zero_maps_give_finite_values_and_bounded_gradients(measure):
    alive, dead = positive(15, 4, 30), np.zeros((4, 30), np.float32)
    for source, target in ((alive, dead), (dead, alive), (dead, dead)):
        assert np.isfinite(distance(source, target, measure)).all()
        assert np.abs(distance_gradient(source, target, measure)).max() < 10
    np.testing.assert_allclose(distance(alive, dead, "l2"), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "kind, measure",
    [(kind, "l2") for kind in KINDS] + [("sum_squares", m) for m in ("l1", "mmd", "jmmd")],
)
def test_dead_features_have_a_finite_gradient(kind, measure):
    """One image has no active feature, one a single one, as after a ReLU."""
    features = positive(16, 4, 2, 3, 5)
    broken = features.copy()
    broken[0] = 0
    broken[1] = 0
    broken[1, 0, 0, 0] = 1e-6
    source = {"layer": attention.attention_map(jnp.asarray(features), kind)}

    def loss(features):
        maps = {"layer": attention.attention_map(features, kind)}
        return attention.alignment_loss(source, maps, measure)

    value, gradient = jax.jit(jax.value_and_grad(loss))(broken)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[2:]).max() > 0


def test_unpaired_maps_or_an_unknown_measure_are_errors():
    with pytest.raises(ValueError, match=r"\(2, 9\).*\(2, 4\)"):
        attention.attention_distance(jnp.zeros((2, 9)), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"adapt\.measure.*cosine.*l2"):
        attention.alignment_loss({"a": jnp.ones((2, 4))}, {"a": jnp.ones((2, 4))}, "cosine")


# L_AT


def two_layers(seed):
    return {"conv1": positive(seed, 4, 30), "conv2": positive(seed + 1, 4, 12)}


def normalised(maps):
    return maps / np.linalg.norm(maps, axis=1, keepdims=True)


@pytest.mark.parametrize("measure", ["l2", "l1"])
def test_alignment_is_summed_over_layers_and_averaged_over_the_batch(measure):
    source, target = two_layers(20), two_layers(30)
    want = sum(distance_twin(source[k], target[k], measure).sum() / 4 for k in source)
    value = alignment(source, target, measure)
    assert value.shape == ()
    np.testing.assert_allclose(value, want, rtol=1e-4)


def test_alignment_by_mmd_is_summed_over_layers_of_normalised_maps():
    source, target = two_layers(40), two_layers(50)
    want = sum(mmd(normalised(source[k]), normalised(target[k])) for k in source)
    np.testing.assert_allclose(alignment(source, target, "mmd"), want, rtol=1e-4, atol=1e-6)


def test_alignment_by_jmmd_takes_the_chosen_layers_together():
    source, target = two_layers(60), two_layers(70)
    for pattern, chosen in ((".*", ("conv1", "conv2")), ("conv2", ("conv2",))):
        want = jmmd(*([normalised(maps[k]) for k in chosen] for maps in (source, target)))
        np.testing.assert_allclose(
            alignment(source, target, "jmmd", pattern), want, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("measure", ["mmd", "jmmd"])
def test_alignment_by_distributions_ignores_pairing_and_vanishes_for_equal_networks(measure):
    source = two_layers(80)
    shuffled = {name: jnp.asarray(maps[::-1]) for name, maps in source.items()}
    value, gradient = jax.jit(
        jax.value_and_grad(lambda maps: attention.alignment_loss(source, maps, measure))
    )(shuffled)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    for maps in jax.tree.leaves(gradient):
        np.testing.assert_allclose(maps, 0, atol=1e-6)


def test_layers_that_differ_or_none_chosen_are_errors():
    maps = two_layers(90)
    with pytest.raises(ValueError, match="conv1.*conv2.*conv1"):
        attention.alignment_loss(maps, {"conv1": maps["conv1"]})
    with pytest.raises(ValueError, match=r"\[\].*\[\]"):
        attention.alignment_loss({}, {})
    with pytest.raises(ValueError, match=r"fc\.\*.*conv1.*conv2"):
        attention.alignment_loss(maps, maps, "jmmd", "fc.*")


# Collecting


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3), name="convolution")(x)
        attention.sow_map(self, "conv", x, "sum_squares")
        return x


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
        attention.sow_map(self, "images", x, "features")
        x = Inner(name="inner")(x)
        attention.sow_map(self, "last", x, "max_abs")
        return x


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        inner = Inner(name="inner")
        return inner(inner(x))


def intermediates_of(module, images):
    variables = module.init(jax.random.key(0), images)
    assert "intermediates" not in variables
    output, state = module.apply(variables, images, mutable=["intermediates"])
    return output, state["intermediates"]


def test_sown_maps_are_collected_by_name():
    images = normal(100, 2, 4, 4, 3)
    output, intermediates = intermediates_of(Outer(), images)
    maps = attention.collect(intermediates)
    assert set(maps) == {"images", "inner/conv", "last"}
    np.testing.assert_array_equal(maps["images"], images.reshape(2, -1))
    np.testing.assert_allclose(
        maps["inner/conv"], map_twin(np.asarray(output), "sum_squares"), 1e-5
    )
    np.testing.assert_allclose(maps["last"], map_twin(np.asarray(output), "max_abs"), 1e-5)


def test_collecting_keeps_names_that_match_as_a_whole():
    _, intermediates = intermediates_of(Outer(), normal(101, 2, 4, 4, 3))
    assert set(attention.collect(intermediates, "inner/.*|last")) == {"inner/conv", "last"}
    with pytest.raises(ValueError, match=r"\bconv\b.*images.*inner/conv.*last"):
        attention.collect(intermediates, "conv")


def test_a_map_sown_twice_is_an_error():
    _, intermediates = intermediates_of(Twice(), normal(102, 2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"inner/conv\b.*\b2\b"):
        attention.collect(intermediates)
