"""Compilation options: the persistent cache, and deterministic operations on request."""

import contextlib
import os
import tempfile
from pathlib import Path

import jax
from ml_collections import ConfigDict

# Seconds; shorter compilations are not cached. JAX's default of 1 s leaves out the digit networks.
_SHORTEST_COMPILATION = 0.1


def configure(settings: ConfigDict) -> None:
    """Applies `config.run`'s settings of compilation; call it before JAX's first computation."""
    if settings.deterministic:
        # Of XLA on a GPU; CPUs and TPUs are deterministic by default.
        flag = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if settings.compilation_cache:
        enable_cache()


def enable_cache() -> None:
    """Turns on JAX's persistent compilation cache, if its folder is writable.

    It is in `JAX_COMPILATION_CACHE_DIR` if set, else in `~/.cache/daaa_jax/xla`. Machines that
    share a home folder may differ: JAX's keys tell processors with other instructions apart.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_COMPILATION)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        # JAX itself would warn once for every program. A missing home folder is a RuntimeError.
        with contextlib.suppress(OSError, RuntimeError):
            folder = Path.home() / ".cache" / "daaa_jax" / "xla"
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            jax.config.update("jax_compilation_cache_dir", str(folder))
