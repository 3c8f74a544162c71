"""Networks for photos agree with PyTorch's, from the pixels to the logits."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_references import SIZE, drawn_state, pixels
from flax import linen as nn
from flax import traverse_util

from configs import photos
from daaa_jax import attention, losses, models
from daaa_jax.data.augment import decode
from daaa_jax.models import pretrained
from daaa_jax.models.efficientnet import EfficientNetLite0
from daaa_jax.models.resnet import ResNet, prepare

REFERENCES = Path(__file__).parent / "references"
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "efficientnet_lite0": 4_652_008,
}
# Convolutions: those of the name, less the classifier, and the shortcuts'.
MAPS = {
    "resnet18": 17 + 3,
    "resnet34": 33 + 3,
    "resnet50": 49 + 4,
    "resnet101": 100 + 4,
    "resnet152": 151 + 4,
    "efficientnet_lite0": 49,
}
REFERENCED = ("resnet18", "resnet50", "efficientnet_lite0")


def network(name: str, **changes):
    return models.CLASSIFIERS[name][0](num_classes=1000, **changes)


def shapes_of(model):
    init = lambda key, images: model.init(key, images, train=False)  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    return {name: shapes[name] for name in ("params", "batch_stats")}


def foreign_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """PyTorch's names of a network's tensors, and their shapes there."""
    with np.load(REFERENCES / f"{name}.npz") as reference:
        pairs = zip(reference["names"], reference["shapes"], strict=True)
        return {key: tuple(map(int, filter(None, shape.split(",")))) for key, shape in pairs}


def drawn_variables(name: str, model):
    """The reference's weights in our network, its classifier too."""
    state = drawn_state(foreign_shapes(name))
    head = "fc" if name.startswith("resnet") else "_fc"
    fitted = pretrained.fit(state, models.CLASSIFIERS[name][1], shapes_of(model), Path("drawn"))
    fitted["params"]["classifier"] = {
        "kernel": state[f"{head}.weight"].T,
        "bias": state[f"{head}.bias"],
    }
    return fitted


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_has_the_published_number_of_parameters(name):
    shapes = shapes_of(network(name))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("remat", [False, True])
def test_every_convolution_gives_a_map(name, remat):
    model = network(name, remat=remat)
    apply = lambda variables, images: model.apply(  # noqa: E731
        variables, images, train=True, mutable=["intermediates", "batch_stats"]
    )
    _, sown = jax.eval_shape(apply, shapes_of(model), jnp.zeros((2, SIZE, SIZE, 3)))
    maps = traverse_util.flatten_dict(sown["intermediates"], sep="/")
    kernels = traverse_util.flatten_dict(shapes_of(model)["params"], sep="/")
    convolutions = [name for name, leaf in kernels.items() if leaf.ndim == 4]
    assert len(maps) == len(convolutions) == MAPS[name]
    first = "conv1" if name.startswith("resnet") else "conv_stem"
    assert maps[first][0].shape == (2, (SIZE // 2) ** 2)
    assert all(found[0].dtype == jnp.float32 for found in maps.values())


@pytest.mark.parametrize("name", REFERENCED)
def test_logits_are_those_of_pytorch(name):
    model = network(name)
    logits = jax.jit(lambda v, x: model.apply(v, decode(x), train=False))(
        drawn_variables(name, model), pixels()
    )
    with np.load(REFERENCES / f"{name}.npz") as reference:
        expected = reference["logits"]
    assert np.linalg.norm(logits - expected) < 1e-4 * np.linalg.norm(expected)
    # Otherwise the comparison would not distinguish the images.
    assert np.linalg.norm(expected[0] - expected[1]) > 0.01 * np.linalg.norm(expected[0])


def timm_name(name: str) -> str:
    """Name in timm's EfficientNet-Lite0 of a tensor of the published file."""
    places = [(s, r) for s, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)) for r in range(repeats)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    outer["_fc"] = "classifier"
    inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
    inner |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    if not name.startswith("_blocks."):
        layer, last = name.split(".")
        return f"{outer[layer]}.{last}"
    _, number, layer, last = name.split(".")
    stage, repeat = places[int(number)]
    return f"blocks.{stage}.{repeat}.{(inner if stage else first)[layer]}.{last}"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_timms_names_of_efficientnet_are_read(prefix, capsys):
    model = network("efficientnet_lite0")
    state = drawn_state(foreign_shapes("efficientnet_lite0"))
    renamed = {prefix + timm_name(name): value for name, value in state.items()}
    assert len(renamed) == len(state) and f"{prefix}blocks.6.0.conv_pwl.weight" in renamed
    names = models.CLASSIFIERS["efficientnet_lite0"][1]
    ours, theirs = (
        pretrained.fit(content, names, shapes_of(model), Path(f"timm {prefix}"), whole=True)
        for content in (state, renamed)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert "tf_efficientnet_lite0" in capsys.readouterr().out  # the other one is not the same


@pytest.mark.parametrize(("name", "momentum"), [("efficientnet_lite0", 0.99), ("resnet18", 0.9)])
def test_statistics_move_with_the_published_momentum(name, momentum):
    model, size = network(name), (32, 32, 3)
    images = jax.random.normal(jax.random.key(1), (4, *size))
    first = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    update = jax.jit(
        lambda variables: model.apply(variables, images, train=True, mutable=["batch_stats"])[1]
    )
    means = []
    for _ in range(2):
        first = {"params": first["params"], **update(first)}
        flat = traverse_util.flatten_dict(first["batch_stats"], sep="/")
        means.append(next(leaf for name, leaf in flat.items() if name.endswith("mean")))
    np.testing.assert_allclose(means[1], (1 + momentum) * means[0], rtol=1e-4, atol=1e-7)


def test_versions_of_resnet_differ_in_where_they_stride_and_pool():
    strides = {}
    for version in ("v1.5", "v1"):
        model = ResNet(num_classes=5, version=version, blocks=(1, 1), width=8)
        apply = lambda v, x, model=model: model.apply(  # noqa: E731
            v, x, train=False, mutable=["intermediates"]
        )
        _, sown = jax.eval_shape(apply, shapes_of(model), jnp.zeros((1, SIZE, SIZE, 3)))
        block = sown["intermediates"]["stage2_block0"]
        strides[version] = [int(block[f"conv{i}"][0].shape[1] ** 0.5) for i in (1, 2, 3)]
    assert strides == {"v1.5": [16, 8, 8], "v1": [8, 8, 8]}
    with pytest.raises(ValueError, match=r"model\.version.*v2.*v1\.5"):
        shapes_of(ResNet(num_classes=5, version="v2"))


def test_caffe_pools_from_the_first_pixel(monkeypatch):
    """A lone bright pixel in the last row lies in one window of Caffe's, which hangs over."""
    pooled = {}
    pool = nn.max_pool

    def watch(features, **how):
        pooled[version] = np.asarray(pool(jnp.arange(36.0).reshape(1, 6, 6, 1), **how))[0, :, :, 0]
        return pool(features, **how)

    monkeypatch.setattr(nn, "max_pool", watch)
    for version in ("v1.5", "v1"):
        model = ResNet(num_classes=2, version=version, blocks=(1,), width=4)
        model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    np.testing.assert_array_equal(pooled["v1.5"], [[7, 9, 11], [19, 21, 23], [31, 33, 35]])
    np.testing.assert_array_equal(pooled["v1"], [[14, 16, 17], [26, 28, 29], [32, 34, 35]])


def normed(path: str) -> str:
    """The normalisation behind a convolution's map, by the names of both networks."""
    block, _, layer = path.rpartition("conv")
    return f"{block}{layer[1:]}_norm" if layer.startswith("_") else f"{block}norm{layer}"


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_maps_are_of_what_is_normalised_and_activated(name):
    """Each against the captured output of its normalisation, put through the activation."""
    if name.startswith("resnet"):
        bottlenecks = name == "resnet50"
        model = ResNet(
            num_classes=3, blocks=(1, 1), bottlenecks=bottlenecks, width=4, attention="features"
        )
        activation = jax.nn.relu
    else:
        model = EfficientNetLite0(num_classes=3, attention="features")
        activation = jax.nn.relu6
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = models.initial_variables(jax.random.key(0), model, images[:1])
    _, seen = model.apply(
        variables,
        images,
        train=True,
        mutable=["intermediates", "batch_stats"],
        capture_intermediates=lambda module, _: isinstance(module, nn.BatchNorm),
    )
    flat = traverse_util.flatten_dict(seen["intermediates"], sep="/")
    norms = {path.removesuffix("/__call__"): v[0] for path, v in flat.items() if "__call__" in path}
    maps = {path: value[0] for path, value in flat.items() if "__call__" not in path}
    assert len(maps) == len(norms)
    linear = 0
    for path, found in maps.items():
        norm = norms[normed(path)].reshape(found.shape)
        is_linear = bool((found < 0).any())
        linear += is_linear
        np.testing.assert_allclose(found, norm if is_linear else activation(norm), atol=1e-6)
    # A block's last and its shortcut, which a first basic block lacks; the narrow end of each of
    # the 16 inverted ones.
    assert linear == {"resnet18": 3, "resnet50": 4, "efficientnet_lite0": 16}[name]


def test_caffe_weights_see_blue_first_less_the_mean():
    images = jnp.array([[[[-1.0, 0.0, 1.0]]]])
    np.testing.assert_allclose(
        prepare(images, "caffe")[0, 0, 0], [255 - 103.939, 127.5 - 116.779, -123.68], rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"model\.inputs.*torch.*caffe"):
        prepare(images, "torch")


def test_half_precision_keeps_variables_maps_and_logits_in_float32():
    model = EfficientNetLite0(num_classes=7, dtype="bfloat16")
    shapes = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    apply = lambda v, x: model.apply(  # noqa: E731
        v, x, train=True, mutable=["intermediates", "batch_stats"]
    )
    logits, updates = jax.eval_shape(apply, shapes, jnp.zeros((1, SIZE, SIZE, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, updates))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", [*MAPS])
def test_joint_kernel_takes_few_layers_of_photos(name):
    """Over all of them its product is that of equal images alone, whatever the maps."""
    config = photos.get_config()
    config.model.update(name=name, weights="")
    model = models.create_classifier(config.model, 3, config.adapt.attention)
    image = np.zeros((1, 64, 64, 3), np.float32)

    def maps():
        variables = models.initial_variables(jax.random.key(0), model, image)
        return model.apply(variables, image, train=False, mutable=["intermediates"])[1]

    shapes = attention.collect(jax.eval_shape(maps)["intermediates"], config.adapt.layers)
    chosen = attention.joint_layers(shapes, config.adapt.jmmd_layers)
    assert len(chosen) == 4
    assert sorted(shapes[layer].shape[-1] for layer in chosen) == [2 * 2, 4 * 4, 8 * 8, 16 * 16]

    def gradient(count):
        draw = np.random.default_rng(0).uniform
        source, target = draw(0.5, 1.5, (2, count, 32, 64)).astype(np.float32)
        return np.linalg.norm(jax.grad(lambda target: losses.jmmd(source, target))(target))

    assert gradient(len(chosen)) > 10 * gradient(len(shapes))


@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnet152"])
def test_torchvisions_names_of_every_block_are_known(name):
    """Also of those with two digits."""
    model, state = network(name), {}
    norms = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for path, leaf in traverse_util.flatten_dict(shapes_of(model), sep="/").items():
        layer, last = path.partition("/")[2].rsplit("/", 1)
        theirs = re.sub(r"stage(\d)_block(\d+)/", r"layer\1.\2.", layer)
        theirs = theirs.replace("convolution", "conv").replace("shortcut_norm", "downsample.1")
        theirs = theirs.replace("shortcut", "downsample.0").replace("norm", "bn")
        if layer == "classifier":
            continue
        kernel = last == "kernel"
        shape = leaf.shape[:1:-1] + leaf.shape[:2] if kernel else leaf.shape
        state[f"{theirs}.{'weight' if kernel else norms[last]}"] = np.zeros(shape, np.float32)
    assert "layer3.5.conv1.weight" in state
    pretrained.fit(state, models.CLASSIFIERS[name][1], shapes_of(model), Path("drawn"))
