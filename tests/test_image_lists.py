"""Domains from list files, in the styles of the field's repositories."""

import numpy as np
import pytest
from photo_trees import write_domain

from daaa_jax import check
from daaa_jax.data import image_lists, photo_domains
from daaa_jax.data.image_lists import Options
from daaa_jax.errors import UserError

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
    with pytest.raises(UserError, match="label 2.*class_names=cup,fork.* 2 "):
        image_lists.find(path, Options(class_names="cup,fork"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["knife 2", "cup 0", "fork 1"], ("cup", "fork", "knife")),  # as in VisDA-2017
        (["Boeing 737", "Boeing 747", "Airbus 380"], ("Boeing 737", "Boeing 747", "Airbus 380")),
    ],
)
def test_numbers_after_class_names_are_their_labels_if_they_number_all(lines, expected, root):
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
        ("amazon/images/mug/000.jpg", ["1 ", "line 7"]),
    ],
)
def test_list_that_contradicts_itself_is_refused(line, names, root):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError) as caught:
        image_lists.find(path, Options())
    assert all(name in str(caught.value) for name in [str(path), *names])


def test_file_that_is_listed_twice_is_reported(root, capsys):
    path = write_list(root / "amazon.txt", root / "amazon", "")
    image_lists.find(path, Options())
    assert not capsys.readouterr().out
    path.write_text(path.read_text() + "amazon/images/mug/000.jpg 1\n")
    assert len(image_lists.find(path, Options()).paths) == 7
    printed = capsys.readouterr().out
    assert str(path) in printed and "mug/000.jpg" in printed and "mug/001.jpg" not in printed
    path.write_text("amazon/images/mug/000.jpg 0\n./amazon/images/mug/000.jpg 1\n")
    image_lists.find(path, Options(class_names="bike,mug"))
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


def test_numbers_of_a_flat_target_are_the_classes_of_the_source(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_list(root / "amazon.txt", root / "amazon", "")
    write_domain(root / "flat", ("all",), each=3)
    target = root / "flat.txt"
    target.write_text("".join(f"flat/all/{n:03d}.jpg {2 - n}\n" for n in range(3)))
    task = photo_domains.load(settings(source=str(source), target=str(target), limit=0))
    np.testing.assert_array_equal(task.evaluation.target_test.labels, [2, 1, 0])


def test_predictions_are_of_the_files_in_a_list(root):
    from daaa_jax.inference import find_files

    path = write_list(root / "amazon.txt", root / "amazon", "")
    path.write_text(path.read_text() + "amazon/lost.jpg 2\n")
    found = find_files([str(path)], Options())
    assert len(found) == 7 and found[-1] == root / "amazon/lost.jpg"
