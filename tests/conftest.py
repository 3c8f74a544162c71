"""What all tests share: simulated CPU devices, kept programs, real data where there is some."""

import os
import zipfile
from pathlib import Path

import pytest

# Before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

# Tests that start the program in a process of its own run this copy of it, from whatever folder.
_REPOSITORY = str(Path(__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [_REPOSITORY, os.environ.get("PYTHONPATH")])
)

# Tests compile thousands of programs, most in a few milliseconds and again and again: all are kept,
# also for the next run.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
from daaa_jax.runtime import compilation  # noqa: E402

compilation.enable_cache()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds `mnist/` and `mnist_m/`."""
    folder = os.environ.get("DAAA_DATA")
    if not folder:
        pytest.skip("the environment variable DAAA_DATA names no folder with the real data")
    if not Path(folder).is_dir():
        pytest.skip(f"DAAA_DATA names {folder}, which is no folder")
    return Path(folder)


@pytest.fixture
def tiny_run(tmp_path) -> Path:
    """The working directory of a finished run of tiny networks, see `test_old_workdirs`."""
    with zipfile.ZipFile(Path(__file__).parent / "fixtures" / "workdir_0a053ea.zip") as packed:
        packed.extractall(tmp_path / "run")
    return tmp_path / "run"
