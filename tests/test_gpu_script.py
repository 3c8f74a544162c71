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
    environment.pop("XLA_FLAGS", None)  # of these tests: eight devices
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", "--dry", f"--out={tmp_path / 'gpu'}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "gpu" / "summary.tsv").read_text().splitlines()
    status = dict(line.split("\t")[:2] for line in lines)
    torch = importlib.util.find_spec("torch") is not None
    done_parts = dict.fromkeys(["agreement", "digits", "mnistm", "office10"], "0")
    assert status == done_parts | {"pytorch": "0" if torch else "skipped"}
    for part in ("digits", "mnistm", "office10"):
        assert (tmp_path / "gpu" / part / "result.json").exists()
    folder = tmp_path / "gpu" / "pytorch"
    assert (folder / "performance.json").exists() == torch
    assert ("skipped: this Python has no torch" in (folder / "log.txt").read_text()) != torch


def test_parts_without_data_are_skipped(tmp_path):
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", "--out=gpu", "mnistm", "office10"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "gpu" / "summary.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        ["mnistm", "skipped"],
        ["office10", "skipped"],
    ]
