"""The dataset check reports what training would refuse, before anything is trained."""

import re
import shutil
from pathlib import Path

import numpy as np
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


def run(capsys, *folders: Path) -> tuple[int, str]:
    """Exit code and output."""
    code = check.main([str(folder) for folder in folders])
    return code, capsys.readouterr().out


def line_above(text: str, item: str) -> str:
    """The heading of the list that starts with `item`."""
    lines = [line.strip() for line in text.splitlines()]
    return lines[lines.index(item) - 1]


def test_folders_without_problems_pass_and_their_images_are_counted(source, target, capsys):
    code, text = run(capsys, source, target)
    assert code == 0
    for folder, images, classes in ((source, 4, 2), (target, 6, 2)):
        line = rf"^{re.escape(str(folder))}\b.* {images} .* {classes} "
        assert re.search(line, text, re.MULTILINE)
    assert re.search(r"\bpen: 3$", text, re.MULTILINE)


def test_target_may_have_no_classes_but_the_source_must(source, tmp_path, capsys):
    flat = tmp_path / "flat"
    write_image(flat / "a.jpg", 0, 7)
    assert run(capsys, source, flat)[0] == 0
    code, text = run(capsys, flat, source)
    assert code == 1 and f"{flat}/<class>/" in text


def test_source_of_one_class_fails_and_the_folder_to_use_instead_is_named(source, tmp_path, capsys):
    outer = tmp_path / "outer"
    outer.mkdir()
    source.rename(outer / "train")
    write_image(tmp_path / "flat" / "a.jpg", 0, 7)
    code, text = run(capsys, outer, tmp_path / "flat")
    assert code == 1 and str(outer / "train") in text


def test_target_may_lack_a_class_but_not_add_one(source, target, capsys):
    write_image(source / "ruler" / "a.jpg", 2, 0)
    for folders, expected in (((source, target), 0), ((target, source), 1)):
        code, text = run(capsys, *folders)
        heading = line_above(text, "'ruler'")
        assert code == expected and heading.endswith(" 1")
        assert str(source) in heading and str(target) in heading


def test_unreadable_files_and_empty_classes_are_named(source, target, capsys):
    broken = target / "mug" / "broken.jpg"
    broken.write_bytes(b"no image")
    (source / "ruler").mkdir()
    (source / "ruler" / "notes.txt").write_text("to come")
    code, text = run(capsys, source, target)
    assert code == 1
    assert re.search(rf"^\s*{re.escape(str(broken))}: \S", text, re.MULTILINE)
    assert line_above(text, "'ruler'").endswith(" 1") and "ruler: 0" in text


def test_file_that_is_deleted_during_the_check_is_named(source, monkeypatch, capsys):
    lost = source / "mug" / "000.jpg"
    look = check.photos.is_all_transparent

    def look_and_delete(image):
        lost.unlink(missing_ok=True)
        return look(image)

    monkeypatch.setattr(check.photos, "is_all_transparent", look_and_delete)
    code, text = run(capsys, source)
    assert code == 1 and f"{lost}: no such file" in text


@pytest.mark.parametrize("links", [["a.jpg"], ["a.jpg", "b.jpg"]])
def test_class_of_links_that_lead_nowhere_fails(links, source, capsys):
    for name in links:
        (source / "ruler").mkdir(exist_ok=True)
        (source / "ruler" / name).symlink_to(source / "nowhere.jpg")
    code, text = run(capsys, source)
    assert code == 1 and line_above(text, "'ruler'").endswith(" 1")
    assert all(f"{source / 'ruler' / name}: no such file" in text for name in links)


def links_to(folder, link):
    """A folder whose classes are links to those of another."""
    link.mkdir()
    for path in folder.iterdir():
        (link / path.name).symlink_to(path)
    return link


def test_domain_that_is_given_twice_or_within_another_fails(source, target, tmp_path, capsys):
    (tmp_path / "link").symlink_to(source)
    for other in (source, tmp_path / "link", links_to(source, tmp_path / "links")):
        code, text = run(capsys, source, other)
        assert code == 1 and f"error: all images of {source}" in text and str(other) in text
    write_image(tmp_path / "links" / "more" / "a.jpg", 1, 5)
    assert f"error: all images of {source}" in run(capsys, source, tmp_path / "links")[1]
    next(path for path in (tmp_path / "links").rglob("*") if path.is_symlink()).unlink()
    assert f"error: all images of {source}" not in run(capsys, source, tmp_path / "links")[1]


def test_target_that_is_given_twice_is_checked_once(source, target, capsys):
    code, text = run(capsys, source, target, Path(f"{target}/"), target)
    assert code == 0 and text.count(f"{target}: ") == 1 and " = " not in text


def test_targets_are_checked_as_targets_without_their_source(target, tmp_path, capsys):
    (target / "ruler").mkdir()
    (target / "ruler" / "notes.txt").write_text("to come")
    for number in range(27):
        write_image(target / "mug" / f"{number}.png", 0, 100 + number)
    code, text = run(capsys, tmp_path / "nowhere", target)
    assert code == 1 and str(target) in text and "of the largest" not in text


@pytest.mark.parametrize("kind", ["zip", "gztar", "png", "numbers", "x" * 300])
def test_file_that_is_no_list_is_named_by_its_kind_and_others_are_checked(
    kind, source, target, tmp_path, capsys
):
    path = tmp_path / "archive"
    if kind in ("zip", "gztar"):
        path = Path(shutil.make_archive(str(path), kind, source))
    elif kind == "png":
        Image.new("RGB", (40, 40)).save(path, format="PNG")
    elif kind == "numbers":
        path.write_bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes())
    else:
        path = tmp_path / kind
    code, text = run(capsys, path, target)
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    expected = {"zip": "a zip archive", "gztar": "a tar archive", "png": "a PNG image"}
    assert code == 1 and line.isprintable() and f"{target}: 6 images" in text
    assert expected.get(kind, "") in line and line.startswith(f"error: {path}")


def test_tiny_images_other_files_and_duplicates_are_reported_but_pass(source, target, capsys):
    Image.new("RGB", (9, 40)).save(source / "mug" / "tiny.png")
    (source / "mug" / "list.csv").write_text("a,b")
    original, duplicate = source / "pen" / "000.jpg", target / "pen" / "twin.jpg"
    duplicate.write_bytes(original.read_bytes())
    code, text = run(capsys, source, target)
    assert code == 0
    assert re.search(r"\btiny\.png\b.*\b9\b.*\b40\b", text) and "list.csv" in text
    assert any(str(original) in line and str(duplicate) in line for line in text.splitlines())


def test_missing_folder_is_one_line(source, tmp_path, capsys):
    code, text = run(capsys, source, tmp_path / "nowhere")
    (line,) = (line for line in text.splitlines() if str(tmp_path / "nowhere") in line)
    assert code == 1 and line.startswith("error: ")


@pytest.mark.parametrize("names", [("Mug", "mug"), ("pen", "pen ")])
def test_classes_that_differ_only_in_case_or_spaces_are_quoted(names, tmp_path, capsys):
    root = write_domain(tmp_path / "catalogue", ("bike", *names), each=2)
    code, text = run(capsys, root)
    assert code == 0 and all(repr(name) in text for name in names)
    other = write_domain(tmp_path / "phone", ("bike", names[0]), each=2, seed=1)
    code, text = run(capsys, other, root)
    assert code == 1 and repr(names[1]) in text


@pytest.mark.parametrize("copies", [("mug",), ("mug", "bike")])
def test_files_in_two_classes_of_a_domain_are_reported(copies, tmp_path, capsys):
    root = write_domain(tmp_path / "catalogue", ("bike", "mug", "pen"), each=2)
    original = root / "pen" / "000.jpg"
    for name in copies:
        (root / name / "twin.jpg").write_bytes(original.read_bytes())
    _, text = run(capsys, root)
    (line,) = (line for line in text.splitlines() if str(original) in line)
    assert all(str(root / name / "twin.jpg") in line for name in copies)


def test_images_that_show_nothing_are_reported(source, capsys):
    for name, image in (
        ("black.png", Image.new("RGB", (40, 40))),
        ("white.png", Image.new("L", (40, 40), 255)),
        ("clear.png", Image.new("RGBA", (40, 40), (200, 0, 0, 0))),
    ):
        image.save(source / "mug" / name)
    code, text = run(capsys, source)
    uniform, transparent = (text.split(heading)[1] for heading in ("one colour", "visible pixel"))
    assert code == 0 and "black.png" in uniform and "white.png" in uniform
    assert "clear.png" in transparent and "000.jpg" not in text


@pytest.mark.parametrize("places", [("pen/lost.jpg",), ("lamp", "old"), ("mug/lost", "lamp")])
def test_links_that_lead_nowhere_are_named_and_counted(places, source, tmp_path, capsys):
    """Of images or of whole classes; a link to a class counts once."""
    for place in places:
        (source / place).symlink_to(tmp_path / "moved away")
    code, text = run(capsys, source)
    assert code == 1
    lines = text.splitlines()
    found = [number for number, line in enumerate(lines) if str(tmp_path / "moved away") in line]
    named = [lines[number].strip().partition(": ")[0] for number in found]
    assert sorted(named) == sorted(str(source / place) for place in places)
    assert lines[found[0] - 1].endswith(f": {len(places)}")


def test_values_are_read_as_training_does_and_named(source, capsys):
    ramp = np.tile(np.linspace(0, 1, 40), (40, 1))
    Image.fromarray((ramp * 4000).astype(np.uint16)).save(source / "mug" / "bright.png")
    Image.fromarray((ramp * 100).astype(np.uint16)).save(source / "mug" / "dark.png")
    code, text = run(capsys, source)
    uniform = text.split("one colour")[1]
    assert code == 0 and re.search(r"\bunsigned\b.* 0 .* 4095 ", text)
    assert "dark.png" in uniform and "bright.png" not in uniform  # 6 of 255 in the domain's values


def test_what_a_system_left_is_counted(source, capsys):
    (source / "@eaDir").mkdir()
    (source / "mug" / "Thumbs.db").touch()
    _, text = run(capsys, source)
    assert line_above(text, str(source / "@eaDir")).endswith(" 2")
    assert str(source / "mug" / "Thumbs.db") in text
