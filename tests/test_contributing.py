"""The backbone that CONTRIBUTING.md shows is one that the program can train."""

import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from photo_trees import write_domain

from daaa_jax import attention, main, models
from daaa_jax.models import pretrained

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The shown network with its line in the registry."""
    first, edit = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shown = types.ModuleType("daaa_jax.models.tinynet")
    exec(compile(first, "CONTRIBUTING.md", "exec"), shown.__dict__)
    monkeypatch.setitem(sys.modules, shown.__name__, shown)
    monkeypatch.setattr(models, "tinynet", shown, raising=False)
    imports, _, line = edit.partition("CLASSIFIERS")
    names: dict = {}
    exec(imports, names)
    (entry,) = re.findall(r'"tinynet": (\(.*?\)),', line)
    monkeypatch.setitem(models.CLASSIFIERS, "tinynet", eval(entry, names))


def test_shown_backbone_is_trained_from_start_to_report(tmp_path):
    domains = {
        name: write_domain(tmp_path / name, ("cup", "pen"), 8, seed, 60 * seed)
        for seed, name in enumerate(("source", "target"))
    }
    main.main(
        [
            "--config=folder:smoke",
            *(f"--config.data.{name}={folder}" for name, folder in domains.items()),
            "--config.model.name=tinynet",
            "--config.model.weights=",
            "--config.pair.batch_size=8",
            f"--workdir={tmp_path / 'run'}",
        ]
    )
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_shown_backbone_gives_logits_maps_features_and_reads_weights():
    settings = ConfigDict({"name": "tinynet", "weights": "", "dtype": "auto"})
    model = models.create_classifier(settings, 5, "sum_squares")
    images = np.zeros((2, 32, 32, 3), np.float32)
    variables = models.initial_variables(jax.random.key(0), model, images[:1])
    logits, seen = model.apply(
        variables, images, train=True, mutable=["intermediates", "features", "batch_stats"]
    )
    assert logits.shape == (2, 5) and models.features(seen).shape == (2, 32)
    assert set(attention.collect(seen["intermediates"])) == {"conv1", "conv2"}
    drawn = np.random.default_rng(0).normal
    tensors = {
        "conv1.weight": drawn(size=(32, 3, 3, 3)),
        "conv2.weight": drawn(size=(32, 32, 3, 3)),
    }
    tensors |= {f"conv{number}.bias": drawn(size=32) for number in (1, 2)}
    tensors |= {"fc.weight": drawn(size=(1000, 32)), "fc.bias": drawn(size=1000)}
    _, names = models.CLASSIFIERS["tinynet"]
    fitted = pretrained.fit(tensors, names, variables, Path("file"))
    np.testing.assert_allclose(
        fitted["params"]["convolution2"]["kernel"],
        tensors["conv2.weight"].transpose(2, 3, 1, 0),
        rtol=1e-6,
    )
