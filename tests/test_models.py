"""The networks: shapes, sizes, sown maps, and that fast layers compute what plain ones do."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ml_collections import ConfigDict

from daaa_jax import models
from daaa_jax.errors import UserError
from daaa_jax.models import layers
from daaa_jax.models.cpu import convolution


def _count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _initialised(model, images, *train):
    return jax.jit(model.init, static_argnums=2)(jax.random.key(0), images, *train)


def _shapes(model, *shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def _uniform(*shape, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 1, shape)
    return jnp.asarray(values, jnp.float32)


# The digit network.


@pytest.fixture(scope="module")
def digit_network():
    settings = ConfigDict({"name": "digits", "widths": (32, 64, 128)})
    model = models.create_classifier(settings, 10, "sum_squares")
    return model, _initialised(model, _uniform(1, 32, 32, 3), False)


def test_digit_network_has_the_parameters_of_its_layers(digit_network):
    _, variables = digit_network
    convolutions = 3 * 3 * (3 * 32 + 32 * 64 + 64 * 128)
    norms = 2 * (32 + 64 + 128)  # scale and bias
    classifier = 4 * 4 * 128 * 10 + 10
    assert _count(variables) == convolutions + norms + classifier == 113_962
    assert variables["params"]["convolution1"]["kernel"].shape == (3, 3, 3, 32)


def test_digit_network_gives_logits_and_sows_a_map_of_each_feature_convolution(digit_network):
    model, variables = digit_network
    logits, state = jax.jit(
        lambda variables, images: model.apply(variables, images, False, mutable=["intermediates"])
    )(variables, _uniform(5, 32, 32, 3))
    assert logits.shape == (5, 10)
    assert logits.dtype == jnp.float32
    shapes = {name: maps[0].shape for name, maps in state["intermediates"].items()}
    assert shapes == {"conv1": (5, 32 * 32), "conv2": (5, 16 * 16), "conv3": (5, 8 * 8)}


def test_digit_network_is_normalised_by_the_batch_in_training_and_by_averages_in_evaluation():
    model = models.DigitNetwork(num_classes=10, widths=(4, 4, 4))
    images = _uniform(6, 32, 32, 3)
    variables = _initialised(model, images, False)
    evaluate = jax.jit(lambda variables, images: model.apply(variables, images, False))
    train = jax.jit(
        lambda variables, images: model.apply(variables, images, True, mutable=["batch_stats"])
    )
    alone = evaluate(variables, images[:2])
    np.testing.assert_allclose(evaluate(variables, images)[:2], alone, atol=1e-5)
    trained, updates = train(variables, images)
    trained_alone, _ = train(variables, images[:2])
    assert np.abs(trained[:2] - trained_alone).max() > 1e-2
    for _ in range(100):  # averages that have seen nothing but this batch are its statistics
        _, updates = train({**variables, **updates}, images)
    np.testing.assert_allclose(evaluate({**variables, **updates}, images), trained, atol=1e-3)


def test_unknown_classifier_is_refused():
    with pytest.raises(UserError, match=r"model\.name=resnet51\b.*resnet50"):
        models.create_classifier(ConfigDict({"name": "resnet51"}), 10, "sum_squares")


# The networks of CycleGAN.


def test_generator_has_the_parameters_of_its_layers():
    shapes = _shapes(models.Generator(filters=32, downsamplings=1, blocks=3), 1, 32, 32, 3)
    ends = 2 * 7 * 7 * 3 * 32 + 3  # only the last has a bias
    scales = 2 * 3 * 3 * 32 * 64  # down and up
    blocks = 3 * 2 * 3 * 3 * 64 * 64
    norms = 2 * (32 + 64 + 3 * 2 * 64 + 32)
    assert _count(shapes) == ends + scales + blocks + norms


@pytest.mark.parametrize(("downsamplings", "shape"), [(1, (2, 16, 24, 3)), (2, (1, 32, 32, 3))])
def test_generator_gives_images_of_the_same_size_within_range(downsamplings, shape):
    model = models.Generator(filters=4, downsamplings=downsamplings, blocks=1)
    large = jax.tree.map(lambda leaf: 50 * leaf, _initialised(model, _uniform(*shape)))
    outputs = jax.jit(model.apply)(large, _uniform(*shape))
    assert outputs.shape == shape
    assert outputs.dtype == jnp.float32
    assert np.abs(outputs).max() <= 1
    assert np.abs(outputs).max() > 0.9


def test_generator_refuses_sizes_that_cannot_be_halved():
    with pytest.raises(ValueError, match=r"30x32\b.*\b2\b"):
        _shapes(models.Generator(downsamplings=2), 1, 30, 32, 3)


def test_discriminator_gives_a_logit_for_each_patch():
    model = models.PatchDiscriminator(filters=8, layers=2)
    shapes = _shapes(model, 1, 32, 32, 3)
    assert jax.eval_shape(model.apply, shapes, jnp.zeros((3, 32, 32, 3))).shape == (3, 6, 6, 1)
    first = 4 * 4 * 3 * 8 + 8
    others = 4 * 4 * (8 * 16 + 16 * 32) + 2 * (16 + 32)  # a norm in place of a bias
    assert _count(shapes) == first + others + 4 * 4 * 32 + 1


def test_batch_deviation_distinguishes_a_varied_batch_from_a_repeated_image():
    model = models.PatchDiscriminator(filters=8, layers=2, batch_deviation=True)
    varied = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3), minval=-1)
    variables = model.init(jax.random.key(0), varied)
    assert variables["params"]["logits"]["kernel"].shape == (4, 4, 32 + 8, 1)
    # The images' own features have weight 0: only the deviations of the batch are left.
    kernel = variables["params"]["logits"]["kernel"].at[:, :, :32].set(0)
    variables = {
        "params": variables["params"] | {"logits": {"kernel": kernel, "bias": jnp.ones(1)}}
    }

    first = model.apply(variables, varied)
    np.testing.assert_allclose(first, jnp.tile(first[:1], (4, 1, 1, 1)), rtol=1e-5)
    conv1 = nn.Conv(8, (4, 4), (2, 2), padding=((1, 1), (1, 1)))
    means = nn.leaky_relu(conv1.apply({"params": variables["params"]["conv1"]}, varied), 0.2)
    deviation = np.sqrt(np.asarray(means.mean((1, 2))).var(0) + 1e-4)
    # In the middle a logit sees 4x4 places, each with the same deviations.
    want = 1 + (np.asarray(kernel[:, :, 32:, 0]).sum((0, 1)) * deviation).sum()
    np.testing.assert_allclose(first[0, 2, 2, 0], want, rtol=1e-4)


def test_batch_deviation_of_images_all_alike_has_a_finite_gradient():
    model = models.PatchDiscriminator(filters=8, layers=2, batch_deviation=True)
    alike = jnp.zeros((4, 32, 32, 3))
    variables = model.init(jax.random.key(0), alike)
    gradient = jax.grad(lambda images: model.apply(variables, images).sum())(alike)
    assert np.isfinite(gradient).all()


def test_released_discriminator_is_the_default():
    shapes = _shapes(models.PatchDiscriminator(), 1, 256, 256, 3)
    kernels = [shapes["params"][f"conv{i}"]["kernel"].shape[-1] for i in (1, 2, 3, 4)]
    assert kernels == [64, 128, 256, 512]
    logits = jax.eval_shape(models.PatchDiscriminator().apply, shapes, jnp.zeros((1, 256, 256, 3)))
    assert logits.shape == (1, 30, 30, 1)


# Layers.


def _plain(images, kernel, stride=1, padding="VALID", groups=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _with_gradients(function, *inputs):
    outputs, pull = jax.vjp(function, *inputs)
    return outputs, *pull(_uniform(*outputs.shape, seed=3))


def _assert_same(function, plain, *inputs):
    for ours, theirs in zip(
        jax.jit(lambda *inputs: _with_gradients(function, *inputs))(*inputs),
        jax.jit(lambda *inputs: _with_gradients(plain, *inputs))(*inputs),
        strict=True,
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize(
    ("form", "kernel"),
    [
        (convolution.winograd, (3, 3, 5, 6)),
        (convolution.winograd, (4, 4, 5, 6)),
        (convolution.few_inputs, (3, 3, 3, 6)),
        (convolution.few_inputs, (4, 4, 3, 6)),
        (convolution.few_inputs, (5, 5, 3, 6)),
        (convolution.few_inputs, (7, 7, 3, 6)),
        (convolution.few_outputs, (4, 4, 5, 1)),
        (convolution.few_outputs, (5, 5, 5, 3)),
        (convolution.few_outputs, (7, 7, 5, 3)),
    ],
)
def test_fast_convolution_is_the_plain_one_with_its_gradients(form, kernel, size):
    images = _uniform(2, *size, kernel[2])
    _assert_same(form, _plain, images, _uniform(*kernel, seed=1))


@pytest.mark.parametrize(
    ("form", "kernel"),
    [
        (convolution.winograd, (3, 3, 5, 6)),
        (convolution.few_inputs, (5, 5, 3, 6)),
        (convolution.few_outputs, (5, 5, 5, 3)),
        (convolution.pointwise, (1, 1, 5, 6)),
        (functools.partial(convolution.strided, stride=2), (3, 3, 5, 6)),
    ],
)
def test_fast_convolution_of_several_networks_at_once(form, kernel):
    images, kernels = _uniform(2, 2, 8, 7, kernel[2]), _uniform(2, *kernel, seed=1)
    stride = 2 if kernel[0] == 3 and form is not convolution.winograd else 1
    plain = functools.partial(_plain, stride=stride)
    _assert_same(jax.vmap(form), jax.vmap(plain), images, kernels)


def test_what_is_stored_is_computed_once():
    def convolve(images, kernel):
        return convolution.winograd(jnp.maximum(images, 3.5), kernel)

    program = jax.jit(convolve).lower(_uniform(2, 8, 8, 5), _uniform(3, 3, 5, 6)).compile()
    assert program.as_text().count("maximum(") == 1


def test_upsampling_convolution_is_the_plain_one_with_its_gradients():
    def plain(images, kernel):
        return _plain(jnp.repeat(jnp.repeat(images, 2, 1), 2, 2), kernel, padding="SAME")

    kernel = _uniform(3, 3, 32, 33, seed=1)
    assert convolution.upsampling_pays(kernel)
    _assert_same(layers.upsample_convolve, plain, _uniform(2, 5, 6, 32), kernel)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "form"),
    [
        ((3, 3, 32, 40), 1, "SAME", "winograd"),
        ((4, 4, 32, 32), 1, ((1, 1), (1, 1)), "winograd"),
        ((7, 7, 3, 8), 1, "VALID", "few_inputs"),
        ((7, 7, 8, 3), 1, "SAME", "few_outputs"),
        ((3, 3, 8, 8), 1, "SAME", None),
        ((3, 3, 32, 40), 2, ((1, 1), (1, 1)), None),
        ((3, 3, 64, 40), 2, ((1, 1), (1, 1)), "strided"),
        ((3, 3, 64, 40), 2, "SAME", "strided"),
        ((3, 3, 64, 40), 3, "VALID", "strided"),
        ((1, 1, 64, 64), 1, "VALID", "pointwise"),
        ((1, 1, 64, 64), 2, "VALID", "pointwise"),
        ((5, 5, 64, 64), 1, "SAME", None),
    ],
)
def test_every_convolution_computes_the_same_in_any_form(kernel, stride, padding, form):
    kernel = _uniform(*kernel, seed=1)
    chosen = convolution.choose(kernel, stride)
    assert getattr(chosen, "func", chosen) is (form and getattr(convolution, form))
    _assert_same(
        lambda images, kernel: layers.convolve(images, kernel, stride, padding),
        lambda images, kernel: _plain(images, kernel, stride, padding),
        _uniform(2, 9, 8, kernel.shape[2]),
        kernel,
    )


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
def test_depthwise_convolution_is_the_plain_one_with_its_gradients(size, stride, padding):
    kernel = _uniform(size, size, 1, 6, seed=1)
    assert convolution.choose(kernel, stride, groups=6).func is convolution.depthwise
    _assert_same(
        lambda images, kernel: layers.convolve(images, kernel, stride, padding, groups=6),
        lambda images, kernel: _plain(images, kernel, stride, padding, groups=6),
        _uniform(2, 9, 8, 6),
        kernel,
    )


def test_convolution_of_groups_of_channels_is_left_to_xla():
    assert convolution.choose(_uniform(3, 3, 2, 6), stride=1, groups=3) is None
    assert convolution.choose(_uniform(1, 1, 32, 64), stride=1, groups=2) is None


def test_fast_convolution_is_for_cpus_and_float32_alone(monkeypatch):
    def program(dtype):
        images, kernel = jnp.zeros((1, 8, 8, 32), dtype), jnp.zeros((3, 3, 32, 32), dtype)
        return str(jax.make_jaxpr(lambda *inputs: layers.convolve(*inputs))(images, kernel))

    expected_on_cpu = jax.default_backend() == "cpu"
    assert ("conv_general_dilated" not in program(jnp.float32)) == expected_on_cpu
    assert "conv_general_dilated" in program(jnp.bfloat16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in program(jnp.float32)


@pytest.mark.parametrize("size", [(8, 6), (7, 8), (5, 5)])
def test_pooling_is_max_pool_with_its_gradient_ties_included(size):
    features = jnp.round(3 * _uniform(2, *size, 4))
    _assert_same(layers.max_pool_2x2, lambda x: nn.max_pool(x, (2, 2), (2, 2)), features)


def test_instance_norm_normalises_each_channel_of_each_sample():
    features = 3 + 2 * _uniform(4, 6, 5, 3)
    norm = layers.InstanceNorm()
    outputs = norm.apply(norm.init(jax.random.key(0), features), features)
    np.testing.assert_allclose(outputs.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(outputs.std((1, 2)), 1, atol=1e-4)
    scaled = norm.apply({"params": {"scale": jnp.full(3, 2.0), "bias": jnp.ones(3)}}, features)
    np.testing.assert_allclose(scaled, 2 * outputs + 1, atol=1e-5)


def test_instance_norm_of_a_constant_has_finite_gradients():
    norm = layers.InstanceNorm()
    features = jnp.ones((1, 4, 4, 2))
    variables = norm.init(jax.random.key(0), features)
    gradient = jax.grad(lambda x: jnp.square(norm.apply(variables, x)).sum())(features)
    assert np.isfinite(gradient).all()


def test_generator_that_starts_as_the_identity_changes_nothing_at_first():
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    generator = models.Generator(filters=4, blocks=1, identity_start=True)
    made, variables = generator.init_with_output(jax.random.key(0), images)
    np.testing.assert_allclose(made, 0.99 * images, atol=1e-5)

    def change(params):
        return generator.apply({"params": params}, images).mean()

    gradient = jax.grad(change)(variables["params"])
    assert jnp.abs(gradient["leave"]["kernel"]).max() > 0
