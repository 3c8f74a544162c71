"""Small files are whole or absent; settings have one fingerprint and readable differences."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from daaa_jax.errors import UserError
from daaa_jax.runtime import markers

SETTINGS = {"adapt": {"beta": 0.1, "mix": [0.35, 0.15]}, "seed": 1, "data": {"name": "embedded"}}


def test_fingerprint_does_not_depend_on_order_or_on_the_kind_of_mapping():
    turned = {"seed": 1, "data": {"name": "embedded"}, "adapt": {"mix": (0.35, 0.15), "beta": 0.1}}
    assert markers.fingerprint(SETTINGS) == markers.fingerprint(turned)
    assert markers.fingerprint(SETTINGS) == markers.fingerprint(ConfigDict(SETTINGS))
    numpy_seed = SETTINGS | {"seed": np.int64(1)}
    assert markers.fingerprint(SETTINGS) == markers.fingerprint(numpy_seed)


def test_fingerprint_is_the_same_in_every_process():
    program = (
        "from daaa_jax.runtime.markers import fingerprint; print(fingerprint({'b': 1, 'a': 0.1}))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert printed.stdout.strip() == markers.fingerprint({"a": 0.1, "b": 1}), printed.stderr


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"seed": 1.0}, {"seed": None}, {"data": {}}, {"more": 1}]
)
def test_fingerprints_differ_exactly_where_differences_are_listed(change):
    changed = SETTINGS | change
    assert markers.fingerprint(changed) != markers.fingerprint(SETTINGS)
    assert markers.differing_settings(SETTINGS, changed)
    assert not markers.differing_settings(SETTINGS, json.loads(json.dumps(SETTINGS)))


def test_differing_settings_are_dotted_names_with_both_values():
    new = {"adapt": {"beta": 0.3, "mix": [0.35, 0.2]}, "data": {"name": "embedded"}, "x": "y"}
    assert markers.differing_settings(SETTINGS, new) == [
        "adapt.beta (was 0.1, is 0.3)",
        "adapt.mix (was [0.35, 0.15], is [0.35, 0.2])",
        "seed (was 1, is absent)",
        'x (was absent, is "y")',
    ]


def test_marker_comes_back_as_written(tmp_path):
    assert markers.read_marker(tmp_path / "adapt") is None
    markers.write_marker(tmp_path / "adapt", "adapt", ConfigDict(SETTINGS), {"seconds": 1.5})
    marker = markers.read_marker(tmp_path / "adapt")
    assert marker["stage"] == "adapt"
    assert marker["fingerprint"] == markers.fingerprint(SETTINGS)
    assert marker["settings"] == SETTINGS
    assert marker["extra"] == {"seconds": 1.5}
    assert [path.name for path in (tmp_path / "adapt").iterdir()] == [markers.MARKER_NAME]


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "pair"}', ""])
def test_damaged_marker_is_named(tmp_path, content):
    (tmp_path / markers.MARKER_NAME).write_text(content)
    with pytest.raises(UserError, match=markers.MARKER_NAME) as caught:
        markers.read_marker(tmp_path)
    assert "\n" not in str(caught.value)


def test_json_holds_arrays_and_paths_and_turns_what_is_not_finite_into_null(tmp_path):
    value = {"a": np.float32(0.5), "b": jnp.arange(2), "c": float("nan"), "d": tmp_path, 1: True}
    markers.write_json(tmp_path / "deep" / "result.json", value)
    assert json.loads((tmp_path / "deep" / "result.json").read_text()) == {
        "a": 0.5,
        "b": [0, 1],
        "c": None,
        "d": str(tmp_path),
        "1": True,
    }


def test_value_that_json_does_not_know_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "result.json"
    markers.write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="object"):
        markers.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    markers.write_json(path, {"a": 1})

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(markers.os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space.*result\.json"):
        markers.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_process_killed_in_mid_write_leaves_the_old_file(tmp_path):
    markers.write_json(tmp_path / "result.json", {"a": 1})
    program = f"""
import os, signal
from daaa_jax.runtime import markers
markers.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
markers.write_json({str(tmp_path / "result.json")!r}, {{"a": 2}})
"""
    killed = subprocess.run([sys.executable, "-c", program])
    assert killed.returncode == -9
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
