"""PyTorch files are read without PyTorch, and nothing in them is ever run."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from daaa_jax.errors import UserError
from daaa_jax.models import torch_file, weight_file

REFERENCES = Path(__file__).parent / "references"
FORMATS = ("present.pth", "legacy.pth")


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        weight_file.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_are_those_that_were_saved(name):
    content = torch_file.read(REFERENCES / name)
    assert content["epoch"] == 3
    state = content["state_dict"]
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "float": whole,
        "transposed": whole.T,
        "tail": whole[1:, 2:],
        "half": np.array([1.5, -2], np.float16),
        "brain": np.array([1.5, -2], ml_dtypes.bfloat16),
        "long": np.array(7),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.ones(2, np.float32),
    }
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype, key
        np.testing.assert_array_equal(state[key], value, err_msg=key)
    state["float"][:] = 0  # a copy: views do not share it
    assert state["tail"].any()


class Payload:
    """What an attacker puts into a pickle."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def write_zip(path: Path, content: bytes, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in files.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (Payload(os.system, "touch ran"), "system"),
        (Payload(eval, "open('ran', 'w')"), "eval"),
        (Payload(getattr, OrderedDict, "fromkeys"), "getattr"),
        (Payload(print, "ran"), "print"),
        (Payload(pickle.loads, b"."), "loads"),
        (Path("ran"), "Path"),
        (np.ones(2), "numpy"),
        ({"a": {1, 2}}, "set"),
    ],
)
@pytest.mark.parametrize("present", [True, False])
def test_anything_but_tensors_and_dicts_is_refused_by_name(
    payload, name, present, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    if present:
        write_zip(path, pickle.dumps({"state_dict": payload}, protocol=2))
    else:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    message = error_of(path)
    assert name in message and "state_dict" in message
    assert [found.name for found in tmp_path.iterdir()] == ["bad.pth"]
    assert "ran" not in capsys.readouterr().out


def piece(value) -> bytes:
    """What puts a value on a pickle's stack."""
    return pickle.dumps(value, protocol=2).removeprefix(b"\x80\x02").removesuffix(pickle.STOP)


def stored(
    size: int,
    shape: tuple,
    strides: tuple,
    offset: int = 0,
    kind="FloatStorage",
    after_storage=b"",
    after_tensor=b"",
) -> bytes:
    """The pickle `{"w": tensor}`, as PyTorch writes it, with whatever sizes and additions."""
    key = piece("storage") + f"ctorch\n{kind}\n".encode() + piece("0") + piece("cpu") + piece(size)
    storage = pickle.MARK + key + pickle.TUPLE + pickle.BINPERSID + after_storage
    arguments = storage + b"".join(map(piece, (offset, shape, strides, False, None)))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + arguments + pickle.TUPLE
    item = piece({}) + piece("w") + tensor + pickle.REDUCE + after_tensor + pickle.SETITEM
    return b"\x80\x02" + item + pickle.STOP


def test_tensor_made_by_hand_is_read(tmp_path):
    values = np.arange(6, dtype=np.float32)
    path = write_zip(tmp_path / "w.pth", stored(6, (2, 3), (3, 1)), **{"0": values.tobytes()})
    np.testing.assert_array_equal(torch_file.read(path)["w"], values.reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        (stored(6, (2, 4), (3, 1)), ()),
        (stored(6, (2, 3), (3, 1), offset=1), ()),
        (stored(6, (2, 3), (-3, 1)), ()),
        (stored(6, (2, -3), (3, 1)), ()),
        (stored(6, (1000, 1000), (0, 0)), ()),
        (stored(6, (2, 3), (3,)), ()),
        (stored(2**60, (2, 3), (3, 1)), (24, 2**60)),
        (stored(-1, (0,), (1,)), ()),
        (stored(6, (2, 3), (3, 1), kind="DoubleStorage"), (24, 6)),
    ],
)
def test_tensor_with_impossible_sizes_is_refused(content, numbers, tmp_path):
    """Each differs in one or two properties from a valid tensor of 6 values, which is read."""
    path, values = tmp_path / "w.pth", {"0": bytes(24)}
    torch_file.read(write_zip(path, stored(6, (2, 3), (3, 1)), **values))
    message = error_of(write_zip(path, content, **values)).replace(str(path), "")
    assert set(map(str, numbers)) <= set(re.findall(r"\d+", message))


def test_small_file_does_not_unpack_to_a_large_one(tmp_path):
    """What PyTorch writes is never compressed."""
    path, content = tmp_path / "w.pth", pickle.dumps({"w": "x" * 10**6}, protocol=2)
    assert len(torch_file.read(write_zip(path, content))["w"]) == 10**6
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
    error_of(path)


def test_many_views_of_the_same_numbers_are_refused(tmp_path):
    """Each becomes a separate array."""
    head = b"\x80\x02" + piece({})
    item = stored(10_000, (10_000,), (1,)).removeprefix(head + piece("w"))
    item = item.removesuffix(pickle.STOP)

    def views(count):
        content = head + b"".join(piece(f"w{i}") + item for i in range(count)) + pickle.STOP
        return write_zip(tmp_path / "w.pth", content, **{"0": bytes(40_000)})

    assert len(torch_file.read(views(3))) == 3
    error_of(views(100))


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("after_storage", {"size": 2**40}),
        ("after_storage", {"values": None}),
        ("after_tensor", {"shape": (2**20,)}),
        ("after_tensor", {"strides": (-(2**30),)}),
    ],
)
def test_checked_objects_cannot_be_changed_afterwards(where, change, tmp_path):
    """Otherwise a tensor could read the memory beside its storage."""
    path, values = tmp_path / "w.pth", {"0": bytes(24)}
    torch_file.read(write_zip(path, stored(6, (6,), (1,)), **values))
    content = stored(6, (6,), (1,), **{where: piece((None, change)) + pickle.BUILD})
    assert "state_dict" in error_of(write_zip(path, content, **values))  # not a damaged file


def test_nested_lists_that_share_their_items_are_read_once(tmp_path):
    value = []
    for _ in range(60):
        value = [value, value]
    read = torch_file.read(write_zip(tmp_path / "w.pth", pickle.dumps({"w": value}, protocol=2)))
    assert len(read["w"]) == 2 and read["w"][0] is read["w"][1]


@pytest.mark.parametrize("name", FORMATS)
def test_file_that_is_cut_short_or_garbled_is_one_error(name, tmp_path):
    whole = (REFERENCES / name).read_bytes()
    path = tmp_path / "short.pth"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        error_of(path)
    generator = np.random.default_rng(0)
    for _ in range(100):
        garbled = bytearray(whole)
        for place in generator.integers(0, len(whole), 8):
            garbled[place] = generator.integers(0, 256)
        path.write_bytes(garbled)
        try:
            weight_file.read(path)  # what is hit may be a number in a tensor
        except UserError as error:
            assert str(path) in str(error)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"not a pickle")
    error_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "readme.txt" in error_of(path)
    write_zip(path, pickle.dumps({"w": 1}, protocol=2))
    assert torch_file.read(path) == {"w": 1}
    locked = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(header) + flags] |= 1
    path.write_bytes(locked)
    assert "password" in error_of(path)
    path.write_bytes(pickle.dumps(7))
    error_of(path)
    error_of(tmp_path / "absent.pth")
