"""The paired posterior's gate: translations of a CycleGAN that was stopped early do no harm."""

import json

import numpy as np
import pytest
from commands import fresh

pytestmark = pytest.mark.slow

# The default CycleGAN's first updates, while its learning rate is constant.
STOPPED = {"pair.epochs": 1, "pair.optimizer.schedule": "constant"}
SETTINGS = STOPPED | {"data.development_size": 500, "adapt.rounds": 6, "adapt.round_steps": 100}


def result(folder, settings) -> dict:
    """Of a run on the digits, measured on digits held out of the training images."""
    flags = [f"--config.{name}={value}" for name, value in (SETTINGS | settings).items()]
    done = fresh("main", "--config=configs/digits.py", *flags, f"--workdir={folder}", timeout=3600)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())["accuracy"]


def test_paired_ends_near_target_on_translations_of_a_stopped_cyclegan(tmp_path):
    """The source network has 70 to 80 % of them right; mean of three seeds."""
    reached = {"target": [], "paired": []}
    for seed in range(3):
        for posterior, accuracies in reached.items():
            settings = {"seed": seed, "pair.seed": 0, "source.seed": 0, "em.posterior": posterior}
            found = result(tmp_path / f"{posterior}{seed}", settings)
            assert 0.7 <= found["source_translated"] <= 0.8
            accuracies.append(found["target_test"]["last"])
    assert np.mean(reached["paired"]) >= np.mean(reached["target"]) - 0.01, reached
