"""The notebook runs from its first cell to its last."""

import json

import commands
import matplotlib
import pytest


@pytest.mark.slow
def test_notebook_runs_and_the_adapted_network_is_better(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    cells = json.loads((commands.ROOT / "docs" / "digits.ipynb").read_text())["cells"]
    found = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), found)
    accuracy = found["accuracy"]
    assert accuracy["target_test"]["last"] > accuracy["source_only"] + 0.1
    assert (found["probabilities"].argmax(axis=1) == found["labels"][::500]).mean() >= 0.8
