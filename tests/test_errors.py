"""Messages: numbers with their nouns, and what to give instead."""

import re
from pathlib import Path
from unittest import mock

import pytest
from photo_trees import write_domain

import daaa_jax
from configs import folder
from daaa_jax.data import photo_domains
from daaa_jax.errors import UserError, counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "image", "2 images"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
    ],
)
def test_noun_agrees_with_its_number(number, noun, text):
    assert counted(number, noun) == text


@pytest.mark.parametrize("number", [1, 2])
def test_messages_of_one_and_of_two_images_differ(number, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_domain(tmp_path / "shop", ("mug", "pen"), each=2)
    target = write_domain(tmp_path / "phone", ("mug", "pen"), each=2, seed=1)
    write_domain(target, ("lamp",), each=number, seed=2)
    for name in range(number):
        (source / "mug" / f"broken{name}.jpg").write_bytes(b"\xff\xd8\xff")
    settings = folder.get_config("smoke,data.limit=0").data
    settings.update(source=str(source), target=str(target), unknown_classes="ignore")
    images = counted(number, "image")
    with pytest.raises(UserError, match=rf"^{images} cannot be read"):
        photo_domains.load(settings)
    settings.on_error = "skip"
    photo_domains.load(settings)
    assert len(re.findall(rf"\b{images}\b", capsys.readouterr().out)) == 3  # unknown twice


@pytest.mark.parametrize("given", ["a.png", Path("a.png")])
def test_one_path_in_place_of_a_list_is_refused(given):
    network = mock.Mock(about={"image_size": 8}, variables={})
    with pytest.raises(UserError, match=r"a\.png.*list"):
        daaa_jax.predict(network, given)
