"""The doctor says of folders what training would say, before anything is trained."""

from pathlib import Path

import pytest
from photo_trees import write_domain, write_image
from PIL import Image

from daaa_jax import check

CLASSES = ("mug", "pen")


@pytest.fixture
def source(tmp_path) -> Path:
    return write_domain(tmp_path / "catalogue", CLASSES, each=2)


@pytest.fixture
def target(tmp_path) -> Path:
    return write_domain(tmp_path / "phone", CLASSES, each=3, seed=1)


def told(capsys, *folders: Path) -> tuple[int, str]:
    code = check.main([str(folder) for folder in folders])
    return code, capsys.readouterr().out


def test_sound_folders_are_fit_to_train_on(source, target, capsys):
    code, text = told(capsys, source, target)
    assert code == 0 and "fit to train on" in text
    assert "4 images, 2 classes" in text and "6 images, 2 classes" in text and "  pen: 3" in text


def test_target_without_classes_is_sound_and_source_without_is_not(source, tmp_path, capsys):
    write_image(tmp_path / "flat" / "a.jpg", 0, 7)
    assert told(capsys, source, tmp_path / "flat")[0] == 0
    code, text = told(capsys, tmp_path / "flat", source)
    assert code == 1 and "flat has no classes: put its images into a folder for each" in text


def test_source_of_one_class_is_not_fit_and_where_classes_may_be_is_told(source, tmp_path, capsys):
    (tmp_path / "outer").mkdir()
    source.rename(tmp_path / "outer" / "train")
    write_image(tmp_path / "flat" / "a.jpg", 0, 7)
    code, text = told(capsys, tmp_path / "outer", tmp_path / "flat")
    assert code == 1 and "one class, train, where there must be two: if classes" in text
    assert f"give {tmp_path / 'outer'}/train" in text


def test_target_may_lack_a_class_and_not_add_one(source, target, capsys):
    write_image(source / "ruler" / "a.jpg", 2, 0)
    code, text = told(capsys, source, target)
    assert code == 0 and "lacks 1 classes" in text and "ruler" in text
    code, text = told(capsys, target, source)
    assert code == 1 and "adds 1 classes" in text


def test_unreadable_files_and_empty_classes_are_named(source, target, capsys):
    (target / "mug" / "broken.jpg").write_bytes(b"no image")
    (source / "ruler").mkdir()
    (source / "ruler" / "notes.txt").write_text("to come")
    code, text = told(capsys, source, target)
    assert code == 1 and "something must be mended" in text
    assert f"{target / 'mug' / 'broken.jpg'}: cannot identify" in text
    assert "classes without an image" in text and "ruler" in text


def test_tiny_images_strange_files_and_twins_are_told_and_no_obstacle(source, target, capsys):
    Image.new("RGB", (9, 40)).save(source / "mug" / "tiny.png")
    (source / "mug" / "list.csv").write_text("a,b")
    (target / "pen" / "twin.jpg").write_bytes((source / "pen" / "000.jpg").read_bytes())
    code, text = told(capsys, source, target)
    assert code == 0
    assert "tiny.png: 9 x 40 pixels" in text and "list.csv" in text
    assert "1 images are in more than one domain" in text and "twin.jpg" in text


def test_folder_that_is_missing_is_one_line(source, tmp_path, capsys):
    code, text = told(capsys, source, tmp_path / "nowhere")
    assert code == 1 and f"error: {tmp_path / 'nowhere'}: there is no such folder" in text
