"""The model card says how a network was trained, whichever the method."""

import json

import pytest

from configs import digits
from daaa_jax import model_card
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import network_file
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


def card_of(folder, method, which="selected", about=None):
    config = digits.get_config()
    config.method = method
    (folder / "config.json").write_text(json.dumps({"config": files.plain(config)}))
    return model_card.write(
        network_file.Trained(None, {}, ABOUT | (about or {})), Workdir(folder), which
    )


@pytest.mark.parametrize(
    ("method", "says", "never"),
    [
        ("daaa", ["unlabelled images of `phone` by Deep Adversarial Attention", "beta 0.1"], []),
        ("dann", ["unlabelled images of `phone` by the baseline `dann`"], ["beta", "Deep"]),
        (
            "upper_bound",
            ["Trained on labelled images of `phone` itself"],
            ["unlabelled images", "without labels can fail", "beta"],
        ),
    ],
)
def test_card_says_what_a_network_was_trained_on(method, says, never, tmp_path):
    text = card_of(tmp_path, method)
    assert all(part in text for part in says)
    assert not any(part in text for part in never)


def test_source_network_is_not_called_adapted(tmp_path):
    text = card_of(tmp_path, "upper_bound", which="source")
    assert "not adapted" in text and "Trained on labelled images of `catalogue`, as" in text


def test_source_network_has_no_settings_of_the_adaptation(tmp_path):
    text = card_of(tmp_path, "daaa", which="source")
    assert "adaptation:" not in text and "beta" not in text


def test_card_names_the_file_that_the_source_network_came_from(tmp_path):
    config = digits.get_config()
    config.source.checkpoint = "/networks/shop.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({"config": files.plain(config)}))
    about = ABOUT | {"augment": {"crop": 0}, "crops": 10}
    text = model_card.write(network_file.Trained(None, {}, about), Workdir(tmp_path), "last")
    assert "source network: /networks/shop.safetensors" in text
    assert "pretrained weights: " not in text
    assert "10 crops of 112x112 pixels" in text


def test_card_says_how_far_the_second_view_was_trusted(tmp_path):
    counts = {"confident": 99, "contradictions": 1, "own": 40, "others": 80}
    em = {"gamma": 0.9, **counts, "e": 0.02, "e0": 0.41, "e1": 0.81}
    text = card_of(tmp_path, "daaa", about={"em": em})
    assert "gamma 0.900" in text and "soft labels from both images" in text
    assert all(f" {count} " in text for count in counts.values())
    assert "not measured" in card_of(tmp_path, "daaa", about={"em": {"gamma": 0.0}})
    assert "second view" not in card_of(tmp_path, "dann")
