"""A GPU or TPU that this machine has and JAX does not use, and how to install what it needs."""

import os
import shutil
from pathlib import Path

import jax

_GPU_FILES = ("/dev/nvidia0",)
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")


def unused() -> str:
    """`cuda12` or `tpu`, the extra that is missing; empty if nothing is unused.

    Silent where `JAX_PLATFORMS=cpu` was set.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu" or jax.default_backend() != "cpu":
        return ""
    if any(Path(file).exists() for file in _TPU_FILES):
        return "tpu"
    if shutil.which("nvidia-smi") or any(Path(file).exists() for file in _GPU_FILES):
        return "cuda12"
    return ""


def warn_if_unused() -> None:
    """Says how to install the other JAX, as the first line of a command."""
    if extra := unused():
        kind = "TPU" if extra == "tpu" else "GPU"
        print(
            f"this machine has a {kind}, and JAX runs on the CPU: pip install "
            f'"jax[{extra}]" (or set JAX_PLATFORMS=cpu)',
            flush=True,
        )
