"""A step's memory is reported before it runs; if it does not fit, one line names what to reduce."""

import os
import platform
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from daaa_jax.errors import UserError
from daaa_jax.runtime import device_memory


@jax.jit
def step(state, batch):
    return state + batch.sum(), batch.mean()


ARGUMENTS = (jnp.zeros(1000), jnp.ones((512, 512)))


def test_compiled_step_computes_the_same_and_its_memory_is_printed(capsys):
    compiled = device_memory.compile_step("little", step, ARGUMENTS, "nothing")
    assert jnp.array_equal(compiled(*ARGUMENTS)[0], step(*ARGUMENTS)[0])
    compiling, memory = capsys.readouterr().out.splitlines()
    assert compiling.startswith("little") and memory.startswith("little")
    assert re.search(r"\b1 MiB\b", memory)


def test_step_larger_than_the_devices_is_refused(monkeypatch, capsys):
    small = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 100_000})
    monkeypatch.setattr(jax, "local_devices", lambda: [small])
    with pytest.raises(UserError, match=r"\blittle\b.*\bits batch\b"):
        device_memory.compile_step("little", step, ARGUMENTS, "its batch")
    assert re.search(r"\b1\b.*\b0 MiB\b", capsys.readouterr().out)


def test_running_out_of_memory_is_one_line_and_other_errors_are_not_changed():
    with (
        pytest.raises(UserError, match=r"\blittle\b.*\bits batch\b") as caught,
        device_memory.enough_memory("little", "its batch"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nlong story")
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        device_memory.enough_memory("little", "its batch"),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_gigabytes_are_reused_without_page_faults():
    program = """
import resource, numpy as np
from daaa_jax.runtime import allocator
assert allocator.keep_freed_memory()
faults = []
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(5 << 29, np.uint8)[::4096] = 1  # 2.5 GiB, a byte of each page
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
assert faults[1] < faults[0] / 100, faults
"""
    # Huge pages would make few faults of many.
    environment = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
