"""JAX's settings, of the environment or the caller, where the program needs certain values.

It computes in float32: with `JAX_ENABLE_X64` an update would change the types of its state. It
compiles steps ahead of time, which needs `jax.jit`, and relies on NumPy's promotion of types and
ranks and on implicit transfers. JAX's check for reused keys refuses keys in a scan.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax

from daaa_jax.errors import UserError, first_line

_GUARDS = ("allow", "log", None)
# Supported values, of which the first replaces others. JAX has a context manager for each name.
_SUPPORTED: dict[str, tuple] = {
    "jax_enable_x64": (False,),
    "jax_disable_jit": (False,),
    "jax_debug_key_reuse": (False,),
    "jax_numpy_rank_promotion": ("allow", "warn"),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_transfer_guard_host_to_device": _GUARDS,
    "jax_transfer_guard_device_to_device": _GUARDS,
    "jax_transfer_guard_device_to_host": _GUARDS,
}
_OF_DEVICES = ("jax_platforms", "jax_platform_name", "jax_default_device")


def set_supported() -> None:
    """Replaces unsupported values for the whole process, that of a command."""
    for name, value in _replacements().items():
        jax.config.update(name, value)


@contextlib.contextmanager
def supported() -> Iterator[None]:
    """Replaces unsupported values within the block, in this thread; also a decorator."""
    with contextlib.ExitStack() as stack:
        for name, value in _replacements().items():
            stack.enter_context(getattr(jax, name.removeprefix("jax_"))(value))
        yield


def check_devices() -> None:
    """Initialises JAX's devices.

    Raises:
      UserError: if that fails, as when `JAX_PLATFORMS` names a backend that is not installed.
    """
    try:
        jax.device_put(0).block_until_ready()
    except Exception as error:  # JAX raises several types, one of them without a message
        values = jax.config.values
        given = [f"{name.upper()}={values[name]}" for name in _OF_DEVICES if values[name]]
        raise UserError(
            f"JAX has no devices{' for ' * bool(given)}{', '.join(given)}: set JAX_PLATFORMS to an "
            f"installed backend, such as cpu ({first_line(error)})"
        ) from error


def _replacements() -> dict[str, Any]:
    """Setting → supported value, for those with another value; names them on standard error."""
    values = jax.config.values
    wrong = [name for name, supported in _SUPPORTED.items() if values[name] not in supported]
    if wrong:
        names = ", ".join(f"{name.upper()}={values[name]}" for name in wrong)
        text = f"settings of JAX that are not supported, and ignored: {names}"
        _print_once(text, file=sys.stderr, flush=True)
    return {name: _SUPPORTED[name][0] for name in wrong}


_print_once = functools.cache(print)
