"""Small files are whole or absent; settings have one hash and readable differences."""

import json
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from daaa_jax.runtime import files

SETTINGS = {"adapt": {"beta": 0.1, "mix": [0.35, 0.15]}, "seed": 1, "data": {"name": "embedded"}}


def test_settings_hash_does_not_depend_on_order_or_on_the_kind_of_mapping():
    turned = {"seed": 1, "data": {"name": "embedded"}, "adapt": {"mix": (0.35, 0.15), "beta": 0.1}}
    assert files.settings_hash(SETTINGS) == files.settings_hash(turned)
    assert files.settings_hash(SETTINGS) == files.settings_hash(ConfigDict(SETTINGS))
    numpy_seed = SETTINGS | {"seed": np.int64(1)}
    assert files.settings_hash(SETTINGS) == files.settings_hash(numpy_seed)


def test_settings_hash_is_the_same_in_every_process():
    program = (
        "from daaa_jax.runtime.files import settings_hash; print(settings_hash({'b': 1, 'a': 0.1}))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert printed.stdout.strip() == files.settings_hash({"a": 0.1, "b": 1}), printed.stderr


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"seed": 1.0}, {"seed": None}, {"data": {}}, {"more": 1}]
)
def test_settings_hashes_differ_exactly_where_differences_are_listed(change):
    changed = SETTINGS | change
    assert files.settings_hash(changed) != files.settings_hash(SETTINGS)
    assert files.differing_settings(SETTINGS, changed)
    assert not files.differing_settings(SETTINGS, json.loads(json.dumps(SETTINGS)))


def test_differing_settings_are_dotted_names_with_the_old_and_the_new_value():
    new = {"adapt": {"beta": 0.3, "mix": [0.35, 0.2]}, "data": {"name": "embedded"}, "x": "y"}
    expected = [
        ("adapt.beta", "0.1", "0.3"),
        ("adapt.mix", "[0.35, 0.15]", "[0.35, 0.2]"),
        ("seed", "1"),
        ("x", '"y"'),
    ]
    for found, parts in zip(files.differing_settings(SETTINGS, new), expected, strict=True):
        assert re.match(".*".join(map(re.escape, parts)), found), found


def test_json_holds_arrays_and_paths_and_turns_what_is_not_finite_into_null(tmp_path):
    value = {"a": np.float32(0.5), "b": jnp.arange(2), "c": float("nan"), "d": tmp_path, 1: True}
    files.write_json(tmp_path / "deep" / "result.json", value)
    assert json.loads((tmp_path / "deep" / "result.json").read_text()) == {
        "a": 0.5,
        "b": [0, 1],
        "c": None,
        "d": str(tmp_path),
        "1": True,
    }


def test_value_that_json_does_not_know_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="object"):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space.*result\.json"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_process_killed_in_mid_write_leaves_the_old_file(tmp_path):
    files.write_json(tmp_path / "result.json", {"a": 1})
    program = f"""
import os, signal
from daaa_jax.runtime import files
files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
files.write_json({str(tmp_path / "result.json")!r}, {{"a": 2}})
"""
    killed = subprocess.run([sys.executable, "-c", program])
    assert killed.returncode == -9
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
