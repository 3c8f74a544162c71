"""Networks for photos against PyTorch itself, where that is installed.

Forward, gradients of all parameters, batch statistics, and the way from an image file to logits.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_references import drawn_state
from flax import traverse_util
from ml_collections import ConfigDict
from PIL import Image

from daaa_jax import losses, models
from daaa_jax.data import photos
from daaa_jax.data.augment import decode, evaluation_views
from daaa_jax.models import network_file, pretrained, published_weights, weight_file

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

SIZE, BATCH = 64, 4
LABELS = np.array([3, 1, 4, 1])


@functools.cache
def torchvision():
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # its compiled part may not suit this torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision


def torch_network(name: str):
    """PyTorch's network of a thousand classes."""
    if name.startswith("resnet"):
        return getattr(torchvision().models, name)()
    package = pytest.importorskip("efficientnet_lite_pytorch")
    return package.EfficientNet.from_name("efficientnet-lite0")


def drawn(network) -> dict[str, np.ndarray]:
    """Weights and statistics drawn by name, put into the network too."""
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    state = drawn_state(shapes)
    network.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    return state


def fitted(name: str, state, model):
    _, names = models.CLASSIFIERS[name]
    shapes = network_file.variable_shapes(model, SIZE, ConfigDict({"crop": 0}))
    return pretrained.fit(state, names, shapes, Path("drawn"), whole=True)


def difference(ours, theirs) -> float:
    """Relative L2 error."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)


# In training mode float64 alone: over so few pixels PyTorch's float32 gradients themselves are 2 %
# from its float64 ones. PyTorch's EfficientNet drops connections at random when it is trained.
@pytest.mark.parametrize(
    ("name", "train", "precision", "tolerance"),
    [
        *((f"resnet{layers}", False, "float64", 1e-6) for layers in (18, 34, 50, 101, 152)),
        ("resnet18", True, "float64", 1e-6),
        ("resnet50", True, "float64", 1e-6),
        ("resnet50", False, "float32", 1e-3),
        ("efficientnet_lite0", False, "float64", 1e-6),
        ("efficientnet_lite0", False, "float32", 1e-3),
    ],
)
def test_logits_statistics_and_all_gradients_are_those_of_pytorch(
    name, train, precision, tolerance
):
    network = torch_network(name)
    state = drawn(network)
    network = network.to(getattr(torch, precision)).train(train)
    images = np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3))
    inputs = torch.tensor(images.transpose(0, 3, 1, 2), dtype=getattr(torch, precision))
    wanted = network(inputs)
    torch.nn.functional.cross_entropy(wanted, torch.tensor(LABELS)).backward()
    gradient = {key: value.grad.numpy() for key, value in network.named_parameters()}

    with jax.enable_x64(precision == "float64"):
        model = models.CLASSIFIERS[name][0](num_classes=1000, dtype=precision)
        # The network prepares its own images: undo for it what is prepared for PyTorch's.
        unprepared = images
        if name.startswith("resnet"):
            unprepared = (images * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 2 - 1
        variables = jax.tree.map(lambda x: jnp.asarray(x, precision), fitted(name, state, model))

        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                jnp.asarray(unprepared, precision),
                train=train,
                mutable=["batch_stats"],
            )
            return losses.cross_entropy(logits, LABELS).mean(), (logits, updates)

        found, (logits, updates) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    assert difference(logits, wanted.detach().numpy()) < tolerance
    # The gradients take the way of the weights, as float32, whose rounding is below 1e-7.
    ours = traverse_util.flatten_dict(found, sep="/")
    theirs = fitted(name, {**state, **gradient}, model)["params"]
    theirs = traverse_util.flatten_dict(theirs, sep="/")
    largest = max(np.linalg.norm(value) for value in theirs.values())
    for key, value in theirs.items():
        if np.linalg.norm(value) > 1e-6 * largest:  # below, it is rounding alone
            assert difference(ours[key], value) < tolerance, key
    if train:
        after = {key: value.numpy() for key, value in network.state_dict().items()}
        theirs = traverse_util.flatten_dict(fitted(name, after, model)["batch_stats"], sep="/")
        ours = traverse_util.flatten_dict(updates["batch_stats"], sep="/")
        for key in (key for key in theirs if key.endswith("mean")):
            # Variances differ on purpose: PyTorch keeps the unbiased estimate.
            assert difference(ours[key], theirs[key]) < tolerance, key


@pytest.fixture
def photo(tmp_path) -> Path:
    """A photo of odd proportions."""
    skimage = pytest.importorskip("skimage")
    Image.fromarray(skimage.data.astronaut()[20:420, 50:]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def ours_of(name: str, state, path: Path):
    model = models.CLASSIFIERS[name][0](num_classes=1000)
    images = photos.read(path, 256)[None]
    (view,) = evaluation_views(decode(images), ConfigDict({"crop": 224}), 1)
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(fitted(name, state, model), view)


def test_image_file_gives_the_logits_of_torchvisions_preprocessing(photo):
    network = torch_network("resnet50").eval()
    state = drawn(network)
    transforms = torchvision().transforms
    pipeline = transforms.Compose(
        [
            transforms.Resize((256, 256)),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with torch.no_grad():
        wanted = network(pipeline(Image.open(photo).convert("RGB"))[None]).numpy()
    assert difference(ours_of("resnet50", state, photo), wanted) < 1e-3


def test_published_weights_of_efficientnet_give_pytorchs_logits(photo):
    network = torch_network("efficientnet_lite0").eval()
    state = weight_file.read(published_weights.find("efficientnet_lite0"))
    network.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((256, 256), Image.BILINEAR))
    inputs = torch.tensor(pixels[16:240, 16:240] / 127.5 - 1, dtype=torch.float32)
    with torch.no_grad():
        wanted = network(inputs.permute(2, 0, 1)[None]).numpy()
    found = np.asarray(ours_of("efficientnet_lite0", state, photo))
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert found.argmax() == wanted.argmax()
