"""Files of weights are read by their content, or named as what they are."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_files
from safetensors.numpy import save_file

from daaa_jax.errors import UserError
from daaa_jax.models import weight_file

STATE = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2], np.float16),
    "brain": np.array([1.5, -2], ml_dtypes.bfloat16),
    "count": np.array(5),
}
WRITERS = {
    "npz": lambda path, state: np.savez(path.open("wb"), **state),
    "safetensors": lambda path, state: save_file(state, path),
    "torch": torch_files.write,
    "legacy torch": lambda path, state: torch_files.write(path, state, legacy=True),
}


def error_of(path: Path, what="model.weights") -> str:
    """The message of the error for a file, apart from its path."""
    with pytest.raises(UserError) as caught:
        weight_file.read(path, what)
    message = str(caught.value)
    assert f"{what}={path}" in message and "\n" not in message
    return message.replace(str(path), "")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "name", ["w.pth.tar", "w.ckpt", "w.bin", "w.PTH", "w.pt", "w", "w.npz", "w.SafeTensors", "w.h5"]
)
def test_content_decides_whatever_the_suffix(kind, name, tmp_path):
    path = tmp_path / name
    WRITERS[kind](path, STATE)
    assert weight_file.kind(path) == kind.removeprefix("legacy ")
    found = weight_file.read(path)
    assert found.keys() == STATE.keys()
    for key, value in STATE.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("damage", ["short", "half", "head", "empty"])
def test_damaged_file_is_one_error(kind, damage, tmp_path):
    path = tmp_path / "w.pth"
    WRITERS[kind](path, STATE | {"long": np.zeros(500, np.float32)})
    whole = path.read_bytes()
    lengths = {"short": len(whole) - 3, "half": len(whole) // 2, "head": 20, "empty": 0}
    path.write_bytes(whole[: lengths[damage]])
    message = error_of(path)
    assert "empty" in message or damage != "empty"


def test_safetensors_that_begins_like_a_pickle_is_read(tmp_path):
    """By the length of its header."""
    path = tmp_path / "w.bin"
    for length in range(100, 700):
        save_file(STATE, path, metadata={"a": "x" * length})
        if path.read_bytes().startswith(b"\x80\x02"):
            assert weight_file.read(path).keys() == STATE.keys()
            return
    raise AssertionError("no header of 640 bytes")


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as found:
        for name in names:
            found.writestr(name, b"x")
    return content.getvalue()


def tar(*names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as found:
        for name in names:
            found.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.ones(3))
    return content.getvalue()


OTHERS = [
    ("TorchScript", archive("net/data.pkl", "net/code/__torch__.py", "net/constants.pkl")),
    ("TorchScript", archive("net/version", "net/model.json", "net/tensors/0")),
    ("torch.export", archive("net/archive_format", "net/models/model.json")),
    ("torch.export", archive("serialized_exported_program.json", "version")),
    ("torch.package", archive("net/.data/extern_modules", "net/model/model.pkl")),
    ("Keras", archive("config.json", "model.weights.h5")),
    ("resnet.pth", archive("resnet.pth", "readme.txt")),
    ("first format", tar("sys_info", "pickle", "tensors", "storages")),
    ("tar archive", tar("resnet50.pth")),
    ("gzip", b"\x1f\x8b\x08" + bytes(20)),
    ("xz", b"\xfd7zXZ\0" + bytes(20)),
    ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(20)),
    (".npy", array()),
    ("ONNX", b"\x08\x08\x12\x07pytorch"),
    ("SavedModel", b"\x08\x01\x12\xff"),
    ("TensorFlow checkpoint", bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"),
    ("TensorFlow Lite", b"\x1c\0\0\0TFL3" + bytes(20)),
    ("msgpack", b"\x82\xa6params\x80"),
    ("image", b"\x89PNG\r\n\x1a\n" + bytes(20)),
    ("git lfs pull", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ("HTML", b"\n<!DOCTYPE html><html>"),
    ("JSON", json.dumps({"weight_map": {}}).encode()),
    ("text", b"404: Not Found"),
    ("unknown", bytes(range(200, 256))),
    ("empty", b""),
]


@pytest.mark.parametrize(("what", "content"), OTHERS)
@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_file_of_another_kind_is_named_as_what_it_is(what, content, suffix, tmp_path):
    assert what in error_of(written(tmp_path / f"w{suffix}", content), "source.checkpoint")


@pytest.mark.parametrize("kind", ["TorchScript", "torch.export", "torch.package", "first format"])
def test_message_about_a_program_of_pytorch_says_what_to_save(kind, tmp_path):
    for what, content in OTHERS:
        if what == kind:
            assert "state_dict()" in error_of(written(tmp_path / "w.pt", content))


def test_pickle_that_torch_did_not_write_is_named(tmp_path):
    assert "torch.save" in error_of(written(tmp_path / "w.pkl", pickle.dumps({"w": 1})))
    assert "numpy" in error_of(written(tmp_path / "w.pkl", pickle.dumps(np.ones(2))))


def test_folder_and_missing_file_are_one_error(tmp_path):
    assert "folder" in error_of(tmp_path)
    error_of(tmp_path / "absent.pth")
    error_of(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_one_error(tmp_path):
    written(tmp_path / "w.pth", b"x").chmod(0)
    error_of(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "int4", "float4_e2m1fn"]
)
def test_npz_of_a_type_that_numpy_forgets_is_one_error(dtype, tmp_path):
    """Such types are saved as bytes; only bfloat16 is told by its size."""
    path = tmp_path / "w.npz"
    np.savez(path, good=np.ones(2), strange=np.ones(3, getattr(ml_dtypes, dtype)))
    assert "strange" in error_of(path)


@pytest.mark.parametrize("value", [np.zeros(2, "V3"), np.zeros(2, [("a", "f4"), ("b", "f4")])])
def test_npz_of_bytes_or_records_is_one_error(value, tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, strange=value)
    assert "strange" in error_of(path)


def safetensors_of(path: Path, dtype: str, content: bytes, shape: tuple[int, ...]) -> Path:
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}
    head = json.dumps({"strange": tensor}).encode()
    head += b" " * (-len(head) % 8)
    return written(path, struct.pack("<q", len(head)) + head + content)


@pytest.mark.parametrize(
    ("dtype", "content", "values"),
    [
        ("BF16", b"\xc0\x3f\x00\xc0", [1.5, -2]),
        ("F8_E4M3", b"\x3c\xc0", [1.5, -2]),
        ("F8_E5M2", b"\x3e\xc0", [1.5, -2]),
        ("F8_E8M0", b"\x7f\x80", [1, 2]),
        ("U16", b"\1\0\2\0", [1, 2]),
        ("BOOL", b"\1\0", [1, 0]),
    ],
)
def test_safetensors_of_types_that_numpy_lacks_are_read(dtype, content, values, tmp_path):
    path = safetensors_of(tmp_path / "w.safetensors", dtype, content, (2,))
    np.testing.assert_array_equal(weight_file.read(path)["strange"].astype("f4"), values)


@pytest.mark.parametrize(("dtype", "size"), [("F4", 1), ("F6_E2M3", 3), ("C64", 32), ("Q7", 4)])
def test_safetensors_of_other_types_are_one_error(dtype, size, tmp_path):
    shape = (2,) if dtype == "F4" else (4,)
    path = safetensors_of(tmp_path / "w.safetensors", dtype, bytes(size), shape)
    assert dtype in error_of(path)


def test_tensors_without_values_are_read(tmp_path):
    path = safetensors_of(tmp_path / "w.safetensors", "F32", b"", (0, 3))
    assert weight_file.read(path)["strange"].shape == (0, 3)


def test_npz_that_claims_more_than_it_holds_is_one_error(tmp_path):
    path, claimed = tmp_path / "w.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claimed, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)}
    )
    with zipfile.ZipFile(path, "w") as found:
        found.writestr("w.npy", claimed.getvalue() + bytes(16))
    error_of(path)


def test_npz_with_objects_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, w=np.array([{"a": 1}], dtype=object))
    error_of(path)
