"""How programs are compiled: kept on disk for the next start, and on request without chance."""

import os
import platform
import tempfile
import zlib
from pathlib import Path

import jax

# Shorter compilations are not worth a file; the default of a second leaves out the digit networks.
_SHORTEST_COMPILATION = 0.1


def enable_cache() -> Path | None:
    """Turns on JAX's persistent compilation cache.

    It lies in `~/.cache/daaa_jax/xla`, or where `JAX_COMPILATION_CACHE_DIR` says.

    Returns:
      The folder, or None if it cannot be written and the run goes without.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_COMPILATION)
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is None:
        try:
            folder = Path.home() / ".cache" / "daaa_jax" / "xla" / _processor()
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except (OSError, RuntimeError):  # no home at all is a RuntimeError
            # JAX itself would warn once for every program.
            return None
        jax.config.update("jax_compilation_cache_dir", str(folder))
        return folder
    return Path(chosen)


def be_deterministic() -> None:
    """Has XLA leave out what gives other bits each time on a GPU; before JAX's first computation.

    CPUs and TPUs compute the same bits each time as they are.
    """
    flag = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def _processor() -> str:
    """Tells kinds of processor apart: home folders are shared, and one may lack the other's AVX."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
