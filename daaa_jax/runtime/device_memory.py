"""A step is compiled before its first update, which tells what memory it takes, and if it fits."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from daaa_jax.errors import UserError

_MIB = 2**20


def compile_step(name: str, step: Callable, arguments: tuple, reduce: str) -> Callable:
    """Compiles a jitted step for its arguments, and prints once what memory it takes.

    Args:
      name: the stage.
      step: as `jax.jit` gives it.
      arguments: those of the first call.
      reduce: the settings that make it take less, for the message.

    Returns:
      The compiled step, for arguments of the same shapes and shardings.

    Raises:
      UserError: if the devices have less memory than the step takes.
    """
    # It can take minutes, in which nothing else is shown.
    print(f"{name}: compiling its step", flush=True)
    with enough_memory(f"stage {name}", reduce):
        compiled = step.lower(*arguments).compile()
    needed = step_bytes(compiled)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    limit = min(limits) if all(limits) else None
    if needed is None:
        return compiled
    of = f" of {limit / _MIB:.0f}" if limit else ""
    print(f"{name}: a step takes {needed / _MIB:.0f}{of} MiB on each device", flush=True)
    if limit and needed > limit:
        raise UserError(_too_large(f"stage {name}", reduce))
    return compiled


@contextlib.contextmanager
def enough_memory(name: str, reduce: str) -> Iterator[None]:
    """Tells what to change where the devices run out of memory.

    Args:
      name: what is going on.
      reduce: the settings that make it take less.

    Raises:
      UserError: instead of JAX's own error, of some hundred lines.
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


def step_bytes(compiled: Any) -> int | None:
    """What a compiled step takes on each device; None where that cannot be told.

    Arguments, results and all that lives between them; donated arguments count once.
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
