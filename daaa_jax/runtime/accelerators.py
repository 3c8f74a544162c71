"""Detects a GPU or TPU that JAX does not use, and says how to install its support."""

import os
import shutil
from pathlib import Path

import jax

_GPU_FILES = ("/dev/nvidia0",)
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")


def warn_if_unused() -> None:
    """Prints how to install JAX for an accelerator that it does not use.

    Unless `JAX_PLATFORMS=cpu` is set.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu" or jax.default_backend() != "cpu":
        return
    if any(Path(file).exists() for file in _TPU_FILES):
        kind, extra = "TPU", "tpu"
    elif shutil.which("nvidia-smi") or any(Path(file).exists() for file in _GPU_FILES):
        kind, extra = "GPU", "cuda12"
    else:
        return
    print(
        f"this machine has a {kind}, but JAX runs on the CPU: pip install "
        f'"jax[{extra}]", or set JAX_PLATFORMS=cpu to hide this message',
        flush=True,
    )
