"""The compilation cache recovers from entries that a kill or a full disk has cut."""

import os
import subprocess
import sys
from pathlib import Path

from commands import environment

PROGRAM = """
import jax
from daaa_jax.runtime import compilation
compilation.enable_cache()
jax.jit(lambda x: x + 1)(jax.numpy.arange(3))
jax.jit(lambda x: x * 2)(jax.numpy.arange(3))
"""


def compiled(cache: Path, program: str = PROGRAM) -> tuple[str, dict[str, bytes]]:
    """What a program that compiles prints, and the entries of the cache afterwards."""
    names = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment() | names, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, {path.name: path.read_bytes() for path in cache.glob("*-cache")}


def test_entries_that_are_cut_are_replaced(tmp_path):
    printed, whole = compiled(tmp_path)
    assert not printed and len(whole) > 1
    for path in tmp_path.glob("*-cache"):
        os.truncate(path, path.stat().st_size // 2)
    printed, found = compiled(tmp_path)
    assert not printed
    assert {name: len(entry) for name, entry in found.items()} == {
        name: len(entry) for name, entry in whole.items()
    }
    assert compiled(tmp_path) == ("", found)


def test_cache_that_cannot_be_written_is_reported_once(tmp_path):
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
"""
    printed, cut = compiled(tmp_path, limit + PROGRAM)
    assert len(cut) > 1 and printed.count("UserWarning") == 1, printed
    printed, _ = compiled(tmp_path)
    assert not printed
