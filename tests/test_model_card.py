"""The model card says how a network was trained, whichever the method."""

import json
import re

import pytest

from configs import digits
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import network_file
from daaa_jax.report import model_card
from daaa_jax.runtime import files

ABOUT = {
    "source": "catalogue",
    "target": "phone",
    "classes": ["bike", "mug"],
    "image_size": 112,
    "augment": {"crop": 96},
    "crops": 1,
    "model": {"name": "resnet50"},
}


def card_of(folder, method, which="selected", about=None, posterior="paired"):
    config = digits.get_config()
    config.method, config.em.posterior = method, posterior
    (folder / "config.json").write_text(json.dumps({"config": files.plain(config)}))
    return model_card.write(
        network_file.Trained(None, {}, ABOUT | (about or {})), Workdir(folder), which
    )


@pytest.mark.parametrize(
    ("method", "says", "never"),
    [
        ("daaa", ["unlabelled", "`phone`", "ECCV 2018", "beta 0.1"], ["upper bound"]),
        ("dann", ["unlabelled", "`phone`", "`dann`"], ["beta", "ECCV", "upper bound"]),
        ("upper_bound", ["`phone`", "upper bound"], ["unlabelled", "beta", "ECCV"]),
    ],
)
def test_card_says_how_and_on_what_a_network_was_trained(method, says, never, tmp_path):
    text = card_of(tmp_path, method)
    assert all(part in text for part in says)
    assert not any(part in text for part in never)


def test_card_of_the_source_network_does_not_mention_the_target(tmp_path):
    text = card_of(tmp_path, "upper_bound", which="source")
    assert "`catalogue`" in text and "phone" not in text


def test_card_of_the_source_network_has_no_settings_of_the_adaptation(tmp_path):
    adapted, text = card_of(tmp_path, "daaa"), card_of(tmp_path, "daaa", which="source")
    assert all(name in adapted and name not in text for name in ("beta", "rounds"))


def test_card_names_the_file_of_an_external_source_network(tmp_path):
    config = digits.get_config()
    config.source.checkpoint = "/networks/shop.safetensors"
    config.model.weights = "/weights/unused.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({"config": files.plain(config)}))
    about = ABOUT | {"augment": {"crop": 0}, "crops": 10}
    text = model_card.write(network_file.Trained(None, {}, about), Workdir(tmp_path), "last")
    assert "/networks/shop.safetensors" in text and "unused" not in text
    assert re.search(r"\b10\b.*\b112x112\b", text)


def test_card_has_the_weight_of_the_second_view_and_its_counts(tmp_path):
    counts = {"confident": 99, "contradictions": 1, "own": 40, "others": 80}
    em = {"gamma": 0.9, **counts, "e": 0.02, "e0": 0.41, "e1": 0.81}
    text = card_of(tmp_path, "daaa", about={"em": em})
    assert "gamma 0.900" in text
    assert all(f" {count} " in text for count in counts.values())
    assert text != card_of(tmp_path, "daaa", about={"em": em}, posterior="target")
    assert re.search(r"\bgamma 0$", card_of(tmp_path, "daaa", about={"em": {"gamma": 0.0}}), re.M)
    assert "gamma" not in card_of(tmp_path, "dann")
