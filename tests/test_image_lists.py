"""Domains from list files, in the styles of the field's repositories."""

import csv
import os
from pathlib import Path

import commands
import numpy as np
import pytest
from photo_trees import write_domain

from daaa_jax import check, predict
from daaa_jax.data import image_lists, photo_domains
from daaa_jax.data.folders import UNKNOWN
from daaa_jax.data.image_lists import Options
from daaa_jax.errors import UserError
from daaa_jax.inference import find_files

CLASSES = ("bike", "mug", "pen")


@pytest.fixture
def root(tmp_path):
    write_domain(tmp_path / "amazon" / "images", CLASSES, each=2)
    write_domain(tmp_path / "webcam" / "images", CLASSES, each=3, seed=1)
    return tmp_path


def write_list(path, folder, beginning, ending="\n", first=0):
    """A list of a domain's images, each with the number of its class."""
    files = sorted(folder.rglob("*.jpg"))
    lines = [
        f"{beginning}{file.relative_to(path.parent)} {CLASSES.index(file.parent.name) + first}"
        for file in files
    ]
    path.write_text(ending.join(lines) + ending, encoding="utf-8")
    return path


def check_domain(listing, each=2):
    assert listing.classes == CLASSES
    assert [path.parent.name for path in listing.paths] == [c for c in CLASSES for _ in range(each)]
    np.testing.assert_array_equal(listing.labels, np.repeat(np.arange(3), each))


@pytest.mark.parametrize(
    ("beginning", "options"),
    [
        ("", Options()),  # beside the list
        ("./", Options()),
        ("{root}/", Options()),  # Office-31 in CDAN's release: absolute
        ("data/Office-31/", Options(path_prefix="data/Office-31/")),
        ("/home/ubuntu/office/", Options(path_prefix="/home/ubuntu/office")),
        ("", Options(root="{root}")),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", " \n", "\n\n"])
def test_list_gives_the_images_of_its_folders(beginning, options, ending, root):
    options = Options(options.root.format(root=root), options.path_prefix)
    path = write_list(root / "amazon.txt", root / "amazon", beginning.format(root=root), ending)
    listing = image_lists.find(path, options)
    check_domain(listing)
    assert listing.name == "amazon" and not listing.unreadable


def test_separators_names_and_byte_order_marks_are_read(root):
    write_domain(root / "Art" / "Real World", ("Alarm Clock",), each=1)  # as in Office-Home
    image = "Art/Real World/Alarm Clock/000.jpg"
    for text in (f"{image} 0", f"{image}\t0", f"{image},0", f"{image}, 0", f'"{image}" 0'):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            (root / "art.txt").write_text(text + "\n", encoding=encoding)
            listing = image_lists.find(root / "art.txt", Options())
            assert listing.paths == (root / image,) and listing.classes == ("Alarm Clock",)
    (root / "art.txt").write_text(image.replace("/", "\\") + " clock\n")
    listing = image_lists.find(root / "art.txt", Options())
    assert listing.paths == (root / image,) and listing.classes == ("clock",)
    (root / "art.txt").write_text(f"{image}\n")
    assert image_lists.find(root / "art.txt", Options()).classes == ()


def test_classes_are_in_the_order_of_the_labels(root):
    path = root / "list.txt"  # as in VisDA-2017 and DomainNet
    folders = [("pen", 0), ("bike", 1), ("mug", 10), ("pen", 0)]
    folders[1] = ("bike", 2)
    path.write_text("".join(f"amazon/images/{c}/000.jpg {n}\n" for c, n in folders))
    listing = image_lists.find(path, Options())
    assert listing.classes == ("pen", "bike", "mug")
    np.testing.assert_array_equal(listing.labels, [0, 1, 2, 0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cup,fork,knife", ("cup", "fork", "knife")),
        ("file", ("cup", "fork", "knife")),
        ("Boeing 747, Boeing 737, A 320", ("Boeing 747", "Boeing 737", "A 320")),
    ],
)
def test_class_names_are_given_or_numbers(given, expected, root):
    write_domain(root / "flat", ("all",), each=3)
    path = root / "flat.txt"
    path.write_text("".join(f"flat/all/{n:03d}.jpg {n}\n" for n in range(3)))
    assert image_lists.find(path, Options()).classes == ("0", "1", "2")
    (root / "names.txt").write_text("cup\nfork\nknife\n")
    names = given if "," in given else str(root / "names.txt")
    assert image_lists.find(path, Options(class_names=names)).classes == expected
    with pytest.raises(UserError, match="flat.txt, line 3: label 2.*class_names=cup,fork.* 2 "):
        image_lists.find(path, Options(class_names="cup,fork"))


@pytest.mark.parametrize("given", ["mug,bike,pen", "label,bike,mug,pen", "['pen','bike','mug']"])
def test_class_names_that_contradict_the_folders_are_refused(given, root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    assert image_lists.find(path, Options(class_names="['bike', 'mug', 'pen']")).classes == CLASSES
    with pytest.raises(UserError, match=r"amazon.txt, line 1: label 0 .*'bike'.*class_names="):
        image_lists.find(path, Options(class_names=given))


def test_names_beside_labels_from_one_are_those_of_the_labels(root):
    write_domain(root / "flat", ("fork",), each=2)
    path = root / "flat.txt"
    path.write_text("flat/fork/000.jpg 1\nflat/fork/001.jpg 2\n")  # a folder of both labels
    (root / "names.txt").write_text("2: fork\n1: cup\n")
    found = image_lists.find(path, Options(class_names=str(root / "names.txt")))
    assert found.classes == ("cup", "fork") and found.labels.tolist() == [0, 1]


def test_class_names_beyond_the_labels_are_no_classes(root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    listing = image_lists.find(path, Options(class_names="velo,cup,biro,lamp,fork"))
    assert listing.classes == ("velo", "cup", "biro")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "mug" not in line))
    assert image_lists.find(path, Options(class_names="velo,cup,biro")).classes == ("velo", "biro")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["knife 2", "cup 0", "fork 1"], ("cup", "fork", "knife")),  # as in VisDA-2017
        (["2: knife", "0: cup", "1: fork"], ("cup", "fork", "knife")),
        (["# id name", "1 fork", "0 cup", "2 table knife"], ("cup", "fork", "table knife")),
        (["0,cup", "1,fork", "2,knife"], ("cup", "fork", "knife")),
        (["0. cup", "1. fork", "2. knife"], ("cup", "fork", "knife")),
        (["0 stars", "1 star", "2 stars"], ("0 stars", "1 star", "2 stars")),
        (["grade 0", "grade 1", "grade 2"], ("grade 0", "grade 1", "grade 2")),
        (["players'", "[a]", "knife"], ("players'", "[a]", "knife")),
        (["# my classes", "'cup'", '"fork"', "knife"], ("cup", "fork", "knife")),
        (["Boeing 737", "Boeing 747", "Airbus 380"], ("Boeing 737", "Boeing 747", "Airbus 380")),
    ],
)
def test_numbers_of_class_names_are_their_labels_if_they_number_all(lines, expected, root):
    write_domain(root / "flat", ("all",), each=3)
    path = root / "flat.txt"
    path.write_text("".join(f"flat/all/{n:03d}.jpg {n}\n" for n in range(3)))
    (root / "names.txt").write_text("\n".join(lines))
    found = image_lists.find(path, Options(class_names=str(root / "names.txt")))
    assert found.classes == expected


@pytest.mark.parametrize("given", ["crane,crane,mug", "crane,,mug"])
def test_class_names_that_merge_classes_are_refused(given, root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    with pytest.raises(UserError, match=f"class_names={given}"):
        image_lists.find(path, Options(class_names=given))


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("amazon/images/mug/000.jpg 0", ["label 0", "bike, mug", "class_names"]),
        ("amazon/images/mug/000.jpg", ["1 "]),
    ],
)
def test_list_that_contradicts_itself_is_refused_with_the_number_of_the_line(line, names, root):
    path = write_list(root / "amazon.txt", root / "amazon", "", "\n\n")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError) as caught:
        image_lists.find(path, Options())
    assert all(name in str(caught.value) for name in [f"{path}, line 13", *names])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("others", [("train",), ("train", "test")])
def test_class_of_folders_with_one_name_has_that_name(others, root):
    for split in ("train", "test"):
        write_domain(root / split, ("bike", "mug"), each=1)
    lines = ["train/bike/000.jpg 0", "test/bike/000.jpg 0"]
    lines += [f"{split}/mug/000.jpg 1" for split in others]
    (root / "list.txt").write_text("\n".join(lines))
    listing = image_lists.find(root / "list.txt", Options())
    assert listing.classes == ("bike", "mug") and not listing.is_numbered


def test_folder_that_holds_images_of_other_labels_names_no_class(root):
    """Also where the others are in several folders."""
    for place in ("train/bike", "test/bike", "test/mug", "test/cup"):
        write_domain(root / place, (".",), each=1)
    lines = ["train/bike/000.jpg 0", "test/bike/000.jpg 0"]
    lines += ["test/mug/000.jpg 1", "test/cup/000.jpg 1"]
    (root / "list.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"list\.txt, line [34]: images of label 1 .* cup, mug"):
        image_lists.find(root / "list.txt", Options())


@pytest.mark.parametrize("header", ["path,label", "image label", "file\tclass"])
def test_header_is_named_with_its_line_and_comments_are_left_out(header, root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    lines = path.read_text()
    path.write_text(f"# Office-31\n{header}\n{lines}")
    label = header.split("\t")[-1].split(",")[-1].split()[-1]
    with pytest.raises(UserError, match=rf"amazon\.txt, line 2.* label {label} .*header"):
        image_lists.find(path, Options())
    path.write_text(f"# Office-31\n#\n{lines}")
    check_domain(image_lists.find(path, Options()))
    assert len(find_files([str(path)], Options())) == 6


@pytest.mark.parametrize(
    "line",
    ["{image},0,bike", "0,{image},0", "0 {image}", "{image} 1 0", "0\t{image}\t0\tbike"],
)
def test_lines_of_other_columns_are_named_as_they_are_read(line, root):
    path = root / "list.csv"
    path.write_text(line.format(image="amazon/images/mug/000.jpg"))
    with pytest.raises(UserError, match=r"list\.csv, line 1, .*other columns") as caught:
        image_lists.find(path, Options())
    assert "\n" not in str(caught.value)


def test_separators_at_the_end_of_a_line_are_left_out(root):
    path = write_list(root / "amazon.csv", root / "amazon", "", ending=",\n")
    check_domain(image_lists.find(path, Options()))


@pytest.mark.parametrize("given", ["{root}/names.txt", "names.txt", "a,b/names.txt", "names"])
def test_missing_file_of_class_names_is_named(given, root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    given = given.format(root=root)
    with pytest.raises(UserError, match=f"data.class_names={given}.* no such file"):
        image_lists.find(path, Options(class_names=given))


def test_labels_of_any_number_of_digits_are_in_order(root):
    labels = ("9" * 5000, "1" + "0" * 5000, "7")
    lines = [f"amazon/images/{c}/000.jpg {n}" for c, n in zip(CLASSES, labels, strict=True)]
    (root / "list.txt").write_text("\n".join(lines))
    assert image_lists.find(root / "list.txt", Options()).classes == ("pen", "bike", "mug")


@pytest.mark.parametrize("name", ["x" * 300, "a" * 5000, "a\\" + "b" * 300])
def test_names_that_are_too_long_for_a_file_do_not_exist(name, root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    path.write_text(path.read_text() + f"amazon/images/mug/{name}.jpg 1\n")
    assert len(image_lists.find(path, Options()).unreadable) == 1


@pytest.mark.parametrize("separator", [", ", ",", "\t", ";", " , "])
@pytest.mark.parametrize("label", ["alarm clock", "Real World clock 2", '"desk lamp"', "mug"])
def test_labels_may_hold_spaces_after_a_comma_or_a_tab(separator, label, root):
    path = root / "list.txt"
    path.write_text(f"amazon/images/mug/000.jpg{separator}{label}\n")
    listing = image_lists.find(path, Options())
    assert listing.classes == (label.strip('"'),)
    assert listing.paths == (root / "amazon/images/mug/000.jpg",)


@pytest.mark.parametrize("name", ["a, b.jpg", "a b, c d.jpg", "without suffix, 2"])
def test_commas_and_spaces_of_paths_are_not_before_a_label(name, root):
    (root / "amazon/images/mug/000.jpg").rename(root / name)
    (root / "list.txt").write_text(f"{name} 3\n")
    listing = image_lists.find(root / "list.txt", Options())
    assert listing.paths == (root / name,) and listing.list_labels == ("3",)
    (root / "list.txt").write_text(f"{name}\n")
    assert image_lists.find(root / "list.txt", Options()).paths == (root / name,)


@pytest.mark.parametrize("options", [Options(), Options(path_prefix="data/")])
@pytest.mark.parametrize("absolute", [0, -1])
def test_absolute_lines_are_read_among_relative_ones(absolute, options, root, monkeypatch):
    monkeypatch.chdir(root)
    path = write_list(Path("amazon.txt"), Path("amazon"), options.path_prefix)
    lines = path.read_text().splitlines()
    lines[absolute] = f"{root}/{lines[absolute].removeprefix(options.path_prefix)}"
    path.write_text("\n".join(lines))
    listing = image_lists.find("amazon.txt", options)
    check_domain(listing)
    assert listing.folder == root / "amazon" / "images" and len(listing.files) == 6


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"line\x0bbreak"])
def test_names_that_cannot_be_shown_are_refused_by_line_and_predicted(name, root):
    image = os.fsencode(root / "amazon" / "images" / "mug") + b"/" + name + b".jpg"
    os.rename(root / "amazon" / "images" / "mug" / "000.jpg", image)
    path = root / "list.txt"
    path.write_bytes(b"amazon/images/mug/001.jpg 0\n\n" + image + b" 0\n")
    with pytest.raises(UserError, match=r"list\.txt, line 3:") as caught:
        image_lists.find(path, Options())
    assert str(caught.value).isprintable()
    assert [os.fsencode(file) for file in find_files([str(path)], Options())][1] == image


def test_list_of_another_encoding_is_refused(root):
    (root / "list.txt").write_bytes("amazon/images/mug/000.jpg 0".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"list\.txt is not text.*UTF-8"):
        image_lists.find(root / "list.txt", Options())


def test_file_that_is_listed_twice_is_reported(root, capsys):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    image_lists.find(path, Options())
    assert not capsys.readouterr().out
    path.write_text(path.read_text() + "amazon/images/mug/000.jpg 1\n")
    assert len(image_lists.find(path, Options()).paths) == 7
    printed = capsys.readouterr().out
    assert str(path) in printed and "mug/000.jpg" in printed and "mug/001.jpg" not in printed
    path.write_text("amazon/images/mug/000.jpg 0\n./amazon/images/mug/000.jpg 1\n")
    image_lists.find(path, Options(class_names="cup,fork"))
    assert "mug/000.jpg" in capsys.readouterr().out


def test_check_names_classes_of_a_target_as_training_does(root, capsys):
    source = write_list(root / "amazon.txt", root / "amazon", "")
    other = write_list(root / "webcam.txt", root / "webcam", "", first=1)
    assert check.main([str(source), str(other)]) == 1
    assert "label 1" in capsys.readouterr().out
    write_domain(root / "flat", ("all",), each=3, seed=2)
    target = root / "flat.txt"
    target.write_text("".join(f"flat/all/{n:03d}.jpg {2 - n}\n" for n in range(3)))
    assert check.main([str(source), str(target)]) == 0
    printed = capsys.readouterr().out.split("flat/all: ")[1]
    assert all(f"{name}: 1" in printed for name in CLASSES)


def test_check_finds_files_that_two_lists_of_a_folder_share(root, capsys):
    source = write_list(root / "train.txt", root / "amazon", "")
    lines = source.read_text().splitlines()
    source.write_text("\n".join(lines[:-1]))
    (root / "test.txt").write_text("\n".join(lines[1:]))
    assert check.main([str(source), str(root / "test.txt")]) == 0
    shared = capsys.readouterr().out.split("more than one domain: ")[1]
    assert shared.startswith("4\n") and "mug/000.jpg = " in shared


def test_missing_files_are_unreadable_and_a_wrong_root_is_named(root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    path.write_text(path.read_text() + "amazon/images/pen/lost.jpg 2\n")
    listing = image_lists.find(path, Options())
    check_domain(listing)
    ((lost, reason),) = listing.unreadable
    assert lost == root / "amazon/images/pen/lost.jpg" and str(path) in reason
    with pytest.raises(UserError, match="data.root.*data.path_prefix"):
        image_lists.find(path, Options(root=str(root / "webcam")))


@pytest.mark.parametrize("content", [None, b"", b"\n \n"])
def test_list_without_lines_is_refused(content, tmp_path):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"list\.txt"):
        image_lists.find(path, Options())


def settings(**changes):
    from configs import folder

    config = folder.get_config("smoke").data
    config.update(changes)
    return config


def test_lists_of_two_domains_are_a_task(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_list(root / "amazon.txt", root / "amazon", "")
    target = write_list(root / "webcam.txt", root / "webcam", "")
    data = settings(source=str(source), target=str(target), limit=0)
    task = photo_domains.load(data)
    assert (task.source_name, task.target_name) == ("amazon", "webcam")
    assert task.class_names == CLASSES and len(task.target_train.images) == 9
    folder = photo_domains.load(settings(source=str(source), target=str(root / "webcam"), limit=0))
    np.testing.assert_array_equal(folder.target_train.images, task.target_train.images)
    assert check.main([str(source), str(target)]) == 0
    # Of one name, beside their images.
    for name in ("amazon", "webcam"):
        write_list(root / name / "list.txt", root / name, "")
    data.update(source=str(root / "amazon" / "list.txt"), target=str(root / "webcam" / "list.txt"))
    task = photo_domains.load(data)
    assert (task.source_name, task.target_name) == ("amazon", "webcam")


def test_domains_that_number_classes_differently_are_refused(root):
    source = write_list(root / "amazon.txt", root / "amazon", "")
    target = write_list(root / "webcam.txt", root / "webcam", "", first=1)
    with pytest.raises(UserError, match=r"label 1 .*'mug'.*'bike'"):
        photo_domains.load(settings(source=str(source), target=str(target), limit=0))


def write_flat(path, labels):
    """A list of images of one folder, which names no class; the images' numbers are the order."""
    write_domain(path.with_suffix(""), ("all",), each=len(labels), seed=2)
    lines = [f"{path.stem}/all/{n:03d}.jpg {label}\n" for n, label in enumerate(labels)]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("role", ["target", "target_test"])
def test_numbers_of_a_list_are_the_classes_of_the_source(role, root, tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_list(root / "amazon.txt", root / "amazon", "")
    flat = write_flat(root / "flat.txt", [2, 1, 0, 1])
    places = {"target": str(root / "webcam")} | {role: str(flat)}
    task = photo_domains.load(settings(source=str(source), **places, limit=0))
    np.testing.assert_array_equal(task.evaluation.target_test.labels, [2, 1, 0, 1])
    assert check.main([str(source), str(flat)]) == 0


@pytest.mark.parametrize("role", ["target", "target_test"])
def test_numbers_of_the_source_have_the_names_of_another_list(role, root, tmp_path, monkeypatch):
    """Also those that the other lacks keep their numbers."""
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_flat(root / "flat.txt", [0, 1, 2, 3])
    named = write_list(root / "webcam.txt", root / "webcam", "")
    places = {"target": str(root / "amazon" / "images" / "mug")} | {role: str(named)}
    task = photo_domains.load(settings(source=str(source), **places, limit=0))
    assert task.class_names == (*CLASSES, "3")
    np.testing.assert_array_equal(task.source_train.labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(task.evaluation.target_test.labels, np.repeat([0, 1, 2], 3))
    assert check.main([str(source), str(named)]) == 0


def test_domains_that_name_different_labels_complete_each_other(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_flat(root / "flat.txt", [0, 1, 2])
    target = root / "target.txt"
    target.write_text("webcam/images/bike/000.jpg 0\nwebcam/images/mug/000.jpg 1\n")
    test = write_list(root / "webcam.txt", root / "webcam", "")
    places = {"source": str(source), "target": str(target), "target_test": str(test)}
    assert photo_domains.load(settings(**places, limit=0)).class_names == CLASSES


def test_names_from_one_list_are_compared_with_another(root):
    source = write_flat(root / "flat.txt", [0, 1, 2])
    target = write_list(root / "amazon.txt", root / "amazon", "")
    test = write_list(root / "webcam.txt", root / "webcam", "", first=1)
    places = {"source": str(source), "target": str(target), "target_test": str(test)}
    with pytest.raises(UserError, match="label 1 is 'mug' .* flat and 'bike' .* webcam"):
        photo_domains.load(settings(**places, limit=0))


@pytest.mark.parametrize("role", ["target", "target_test"])
@pytest.mark.parametrize("label", ["7", "unknown"])
def test_label_that_the_source_lacks_is_the_only_one_unknown(
    label, role, root, tmp_path, monkeypatch
):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_list(root / "amazon.txt", root / "amazon", "")
    flat = write_flat(root / "flat.txt", [2, label, 0])
    places = {"target": str(root / "webcam"), "source": str(source)} | {role: str(flat)}
    with pytest.raises(UserError, match=f"lacks: '{label}';"):
        photo_domains.load(settings(**places, limit=0))
    task = photo_domains.load(settings(**places, limit=0, unknown_classes="ignore"))
    np.testing.assert_array_equal(task.evaluation.target_test.labels, [2, UNKNOWN, 0])


def test_label_among_numbers_leaves_the_names_of_the_others(root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    (root / "new").mkdir()
    (root / "amazon/images/mug/000.jpg").rename(root / "new" / "a.jpg")
    lines = path.read_text().replace("amazon/images/mug/000.jpg 1", "new/a.jpg unknown")
    path.write_text(lines)
    assert set(image_lists.find(path, Options()).classes) == {*CLASSES, "unknown"}


def test_names_among_numbers_are_those_of_classes(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_list(root / "amazon.txt", root / "amazon", "")
    target = write_flat(root / "flat.txt", [1, "pen", 0])
    task = photo_domains.load(settings(source=str(source), target=str(target), limit=0))
    np.testing.assert_array_equal(task.evaluation.target_test.labels, [1, 2, 0])


def test_names_that_are_numbers_may_be_in_any_folders(root):
    """Of photographers, for instance."""
    for name in ("ann", "bob"):
        write_domain(root, (name,), each=2)
    (root / "planes.txt").write_text(
        "ann/000.jpg 747\nbob/000.jpg 747\nann/001.jpg A320\nbob/001.jpg A320\n"
    )
    listing = image_lists.find(root / "planes.txt", Options())
    assert listing.classes == ("A320", "747")


def test_tilde_in_a_line_is_the_home_directory(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    (root / "lists").mkdir()
    path = root / "lists" / "list.txt"
    path.write_text("~/amazon/images/mug/000.jpg 0\n~nobody-here/a.jpg 0\n")
    listing = image_lists.find(path, Options())
    assert listing.paths == (root / "amazon/images/mug/000.jpg",)
    assert [file for file, _ in listing.unreadable] == [root / "lists/~nobody-here/a.jpg"]


def test_label_without_a_name_is_not_the_class_of_that_name(root, tmp_path, monkeypatch):
    """Folders 1 and 2 have the labels 0 and 1; the label 2 is of neither."""
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    write_domain(root / "digits", ("1", "2"), each=2)
    source = root / "digits.txt"
    source.write_text("".join(f"digits/{c}/00{n}.jpg {c - 1}\n" for c in (1, 2) for n in (0, 1)))
    target = write_flat(root / "flat.txt", [1, 2])
    with pytest.raises(UserError, match="lacks: 'label 2'"):
        photo_domains.load(settings(source=str(source), target=str(target), limit=0))
    target = write_flat(root / "flat.txt", [1, 0])
    task = photo_domains.load(settings(source=str(source), target=str(target), limit=0))
    np.testing.assert_array_equal(task.evaluation.target_test.labels, [1, 0])


def test_folders_of_digits_are_names_and_no_numbers(root):
    """Labels may be the digits of one domain, and start at one in another."""
    write_domain(root / "one", ("0", "1"), each=1)
    write_domain(root / "two", ("0", "1"), each=1, seed=1)
    for name, first in (("one", 0), ("two", 1)):
        lines = [f"{name}/{digit}/000.jpg {digit + first}\n" for digit in (0, 1)]
        (root / f"{name}.txt").write_text("".join(lines))
    lists = {"source": str(root / "one.txt"), "target": str(root / "two.txt")}
    with pytest.raises(UserError, match="label 1 is '1' .* one and '0' .* two"):
        photo_domains.load(settings(**lists, limit=0))


@pytest.mark.parametrize("role", ["target", "target_test"])
def test_lists_that_name_one_label_differently_are_refused(role, root):
    source = write_list(root / "amazon.txt", root / "amazon", "")
    other = write_list(root / "webcam.txt", root / "webcam", "", first=1)
    places = {"target": str(root / "webcam"), "source": str(source)} | {role: str(other)}
    with pytest.raises(UserError, match=r"label 1 .*'mug'.*'bike'"):
        photo_domains.load(settings(**places, limit=0))
    assert check.main([str(source), str(other)]) == 1


# Files for predictions


def test_predictions_are_of_the_files_in_a_list(root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    path.write_text(path.read_text() + "amazon/lost.jpg 2\n")
    found = find_files([str(path)], Options())
    assert len(found) == 7 and found[-1] == root / "amazon/lost.jpg"
    found = find_files([str(path)], Options(root="/nowhere"))
    assert len(found) == 7 and found[-1] == Path("/nowhere/amazon/lost.jpg")


@pytest.mark.parametrize("name", ["amazon.csv", "amazon.lst", "amazon"])
def test_list_of_any_name_is_a_list_for_predictions_as_for_training(name, root):
    (root / "amazon").rename(root / "photos")
    path = write_list(root / name, root / "photos", "")
    assert len(image_lists.find(path, Options()).paths) == 6
    assert len(find_files([str(path)], Options())) == 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipe_is_a_file_itself_and_not_opened(root):
    os.mkfifo(root / "pipe")
    assert find_files([str(root / "pipe")], Options()) == [root / "pipe"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Photos of the shop.\nTaken in May.\n",
        b"a\nb\namazon/images/mug/000.jpg",
        b"\0\1",
        None,
    ],
)
def test_text_that_is_no_list_is_a_file_itself(content, root):
    text, image = root / "readme.TXT", root / "amazon/images/mug/000.jpg"
    if content is None:
        content = image.read_bytes()  # an image, whatever its suffix
    text.write_bytes(content)
    assert find_files([str(text), str(image)], Options()) == [text, image]


def test_links_that_lead_nowhere_are_files_and_names_of_nothing_are_not(root):
    image, links = root / "amazon/images/mug/000.jpg", (root / "a.jpg", root / "b.txt")
    for link in links:
        link.symlink_to(root / "moved away.jpg")
    (root / "circle.jpg").symlink_to(root / "circle.jpg")
    places = [*links, root / "circle.jpg", image]
    assert find_files(list(map(str, places)), Options()) == places
    with pytest.raises(UserError, match=r"\*\.png cannot be read"):
        find_files([str(image), str(root / "*.png")], Options())


def test_file_given_again_in_its_folder_or_a_list_is_one_file(root):
    images = root / "amazon/images"
    listed = write_list(root / "amazon.txt", root / "amazon", "")
    listed.write_text(listed.read_text() * 2)
    alone = find_files([str(images)], Options())
    again = [str(images), str(images / "mug"), f"{images}/mug/../mug/000.jpg", str(listed)]
    found = [Path(os.path.abspath(path)) for path in find_files(again, Options())]
    assert found == alone and len(alone) == 6
    first = images / "mug/001.jpg"
    assert find_files([str(first), str(images)], Options()) == [
        first,
        *(path for path in alone if path != first),
    ]


def test_predict_writes_a_row_with_the_reason_for_texts_and_lost_links(root, tiny_run):
    image, text, link = root / "amazon/images/mug/000.jpg", root / "readme.txt", root / "lost.jpg"
    text.write_text("Photos of the shop.\n")
    link.symlink_to(root / "moved away")
    done = commands.call("predict", f"--workdir={tiny_run}", image, text, link)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tiny_run / "predictions.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == [str(image), str(text), str(link)]
    assert rows[0]["class"] and not rows[0]["error"]
    assert "text" in rows[1]["error"] and "no such file" in rows[2]["error"]


def test_predict_looks_for_the_files_before_the_network(root, monkeypatch):
    monkeypatch.setattr(predict.jax_settings, "check_devices", lambda: pytest.fail("too late"))
    with pytest.raises(UserError, match="nothing.jpg"):
        predict.main([f"--workdir={root}", str(root / "nothing.jpg")])


@pytest.mark.parametrize("flag", ["--class_names=a,b,c", "--root=~nobody-here/x"])
def test_predict_refuses_a_flag_of_lists_by_name(flag, root, tiny_run):
    """The classes are those of the network."""
    path = write_list(root / "amazon.txt", root / "amazon", "")
    line = commands.refused("predict", f"--workdir={tiny_run}", flag, path)
    assert flag.rpartition("=")[2] in line and "Error" not in line
