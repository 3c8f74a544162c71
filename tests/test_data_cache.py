"""Decoded arrays are cached: completely, also where several processes cache them at once."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from daaa_jax.data import cache

NAMES = ("pixels", "labels")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path))


def arrays(number):
    return {"pixels": np.full((3, 4), number), "labels": np.arange(number)}


def refuse(_):
    raise AssertionError("decoded again")


def test_decoded_arrays_are_read_from_the_disk():
    cache.get("name", NAMES, lambda new: arrays(5))
    again = cache.get("name", NAMES, refuse)
    np.testing.assert_array_equal(again["pixels"], arrays(5)["pixels"])
    assert isinstance(again["labels"], np.memmap)


def test_slower_process_uses_the_entry_of_a_quicker_one(tmp_path, monkeypatch):
    """Hosts may share a cache: what one of them has open is not removed under it."""
    kept, hosts = [], itertools.count()
    monkeypatch.setattr(
        cache, "unfinished", lambda path: path.with_name(f".{path.name}.{next(hosts)}.tmp")
    )

    def slow(_):
        cache.get("name", NAMES, lambda new: arrays(5))
        (place,) = (path for path in tmp_path.iterdir() if path.suffix != ".tmp")
        kept.append((place / "pixels.npy").stat().st_ino)
        return arrays(5)

    found = cache.get("name", NAMES, slow)
    (place,) = tmp_path.iterdir()
    kept.append((place / "pixels.npy").stat().st_ino)
    assert kept[0] == kept[1]
    assert found["pixels"].filename == place / "pixels.npy"
    np.testing.assert_array_equal(found["labels"], np.arange(5))


def test_damaged_entry_is_made_again(tmp_path):
    cache.get("name", NAMES, lambda new: arrays(5))
    (place,) = tmp_path.iterdir()
    (place / "labels.npy").write_bytes(b"")
    found = cache.get("name", NAMES, lambda new: arrays(6))
    np.testing.assert_array_equal(found["labels"], np.arange(6))
    assert list(tmp_path.iterdir()) == [place]


def test_remains_of_a_killed_process_are_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    cache.get("name", NAMES, lambda new: arrays(5))
    (place,) = tmp_path.iterdir()
    cache.drop("name")
    left = cache.unfinished(place)
    gone = left.with_name(left.name.replace(f".{os.getpid()}.", f".{killed.pid}."))
    alive = left.with_name(left.name.replace(f".{os.getpid()}.", f".{os.getppid()}."))
    for folder in (gone, alive):
        folder.mkdir()
    cache.get("name", NAMES, lambda new: arrays(5))
    assert alive.exists() and not gone.exists()


def test_cache_is_among_the_temporary_files_where_there_is_no_home_folder(tmp_path, monkeypatch):
    """As for a user of a container without an entry in its list of users."""

    def unknown(_):
        raise KeyError

    for name in ("DAAA_CACHE", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "daaa_jax"
