"""`benchmarks/gpu.sh` runs on any machine at tiny size."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_gpu_benchmarks_run_at_tiny_size_on_a_cpu(tmp_path):
    """All parts end, and each leaves its results; without PyTorch that part says so."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", "--dry", f"--out={tmp_path / 'gpu'}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "gpu" / "summary.tsv").read_text().splitlines()
    parts = ["agreement", "pytorch", "digits", "mnistm", "office10"]
    assert [line.split("\t")[:2] for line in lines] == [[part, "0"] for part in parts]
    for part in ("digits", "mnistm", "office10"):
        assert (tmp_path / "gpu" / part / "result.json").exists()
    log = (tmp_path / "gpu" / "pytorch" / "log.txt").read_text()
    timed = (tmp_path / "gpu" / "pytorch" / "performance.json").exists()
    assert timed == (importlib.util.find_spec("torch") is not None) or "skipped" in log
