"""Compiles a step before its first update, reports its memory and checks that it fits."""

import contextlib
from collections.abc import Iterator, Sequence

import jax

from daaa_jax.errors import UserError

_MIB = 2**20


def compile_step(
    name: str, step: jax.stages.Wrapped, arguments: tuple, reduce: str
) -> jax.stages.Compiled:
    """Compiles a jitted step for its arguments, and prints how much memory it takes.

    Args:
      name: of the stage.
      step: a function returned by `jax.jit`.
      arguments: those of the first call.
      reduce: the settings that reduce its memory, for the error message.

    Returns:
      The compiled step, for arguments of the same shapes and shardings.

    Raises:
      UserError: if the step takes more memory than the devices have.
    """
    # Compiling can take minutes, during which nothing else is printed.
    print(f"{name}: compiling its step", flush=True)
    with enough_memory(f"stage {name}", reduce):
        compiled = step.lower(*arguments).compile()
    needed, available = step_bytes(compiled), limit(jax.local_devices())
    if needed is None:
        return compiled
    of = f" of {available / _MIB:.0f}" if available else ""
    print(f"{name}: a step takes {needed / _MIB:.0f}{of} MiB on each device", flush=True)
    if available and needed > available:
        raise UserError(_too_large(f"stage {name}", reduce))
    return compiled


def limit(devices: Sequence[jax.Device]) -> int | None:
    """Memory of the smallest device, in bytes; None if the backend does not report it."""
    return min((device.memory_stats() or {}).get("bytes_limit", 0) for device in devices) or None


@contextlib.contextmanager
def enough_memory(name: str, reduce: str) -> Iterator[None]:
    """Turns the out-of-memory errors of a block into a `UserError` that names what to change.

    Args:
      name: what the block does, for the message.
      reduce: the settings that reduce its memory.

    Raises:
      UserError: instead of JAX's error of some hundred lines.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_full(error):
            raise
        raise UserError(_too_large(name, reduce)) from error


def is_full(error: Exception) -> bool:
    """Whether an error says that the devices have run out of memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def step_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Memory of a compiled step on each device, in bytes; None if the backend does not report it.

    Includes arguments, results and temporaries; donated arguments count once.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def _too_large(name: str, reduce: str) -> str:
    return f"{name} takes more memory than the devices have: reduce {reduce}"
