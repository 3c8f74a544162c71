"""The notebook runs from its first cell to its last."""

import json
import subprocess
import sys

import commands
import pytest

# The last cell: what the test reads.
SHOW = """
right = probabilities.argmax(axis=1) == labels[::500]
print(accuracy["target_test"]["last"], accuracy["source_only"], right.mean())
"""


@pytest.mark.slow
def test_notebook_runs_and_the_adapted_network_is_better(tmp_path):
    cells = json.loads((commands.ROOT / "docs" / "digits.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, SHOW])],
        cwd=tmp_path,
        env=commands.environment() | {"MPLBACKEND": "Agg", "PYTHONPATH": str(commands.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last, source_only, right = map(float, done.stdout.splitlines()[-1].split())
    assert last > source_only + 0.1 and right >= 0.8
