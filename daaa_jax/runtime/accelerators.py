"""Detects a GPU or TPU that JAX does not use, and says how to install its support."""

import os
import shutil
from pathlib import Path

import jax

_GPU_FILES = ("/dev/nvidia0",)
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")


def unused() -> str:
    """The missing extra of JAX, `cuda12` or `tpu`; empty if no accelerator is unused.

    Also empty if `JAX_PLATFORMS=cpu` is set.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu" or jax.default_backend() != "cpu":
        return ""
    if any(Path(file).exists() for file in _TPU_FILES):
        return "tpu"
    if shutil.which("nvidia-smi") or any(Path(file).exists() for file in _GPU_FILES):
        return "cuda12"
    return ""


def warn_if_unused() -> None:
    """Prints how to install JAX for an accelerator that it does not use."""
    if extra := unused():
        kind = "TPU" if extra == "tpu" else "GPU"
        print(
            f"this machine has a {kind}, but JAX runs on the CPU: pip install "
            f'"jax[{extra}]", or set JAX_PLATFORMS=cpu to hide this message',
            flush=True,
        )
