"""Files of MNIST and MNIST-M as browsers, mirrors and unpackers leave them."""

import gzip
from pathlib import Path

import digit_trees
import numpy as np
import pytest
from digit_trees import archive, load_error, settings, write_idx

from daaa_jax.data import load_task, mnist, mnist_m
from daaa_jax.runtime import file_kind


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    return digit_trees.write(tmp_path / "data")


def idx_files(root: Path) -> dict[Path, bytes]:
    """The four idx files by path, unpacked."""
    contents = {path: path.read_bytes() for path in sorted((root / "mnist").iterdir())}
    return {
        path: gzip.decompress(content) if path.suffix == ".gz" else content
        for path, content in contents.items()
    }


def rename_idx_files(root: Path, layout: str, packed: int) -> None:
    """Moves the idx files to paths such as `raw/{split}-{part}-idx{n}-ubyte`.

    Args:
      root: the folder of both data sets.
      layout: the path in it of the file of a split and a part.
      packed: how many times the files are gzipped.
    """
    for path, content in idx_files(root).items():
        split, part = path.name.split("-")[:2]
        path.unlink()
        new = root / layout.format(split=split, part=part, n=3 if part == "images" else 1)
        new.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(packed):
            content = gzip.compress(content)
        new.write_bytes(content)


def same(one: dict, other: dict) -> bool:
    """Whether two data sets have the same images and labels, in order, in both splits."""
    return all(
        np.array_equal(one[split].images, other[split].images)
        and np.array_equal(one[split].labels, other[split].labels)
        for split in ("train", "test")
    )


def load_mnist(root: Path) -> dict:
    return {split: mnist.load(root / "mnist", split) for split in ("train", "test")}


@pytest.mark.parametrize(
    ("layout", "packed"),
    [
        ("mnist/{split}-{part}-idx{n}-ubyte.gz", 0),  # unpacked by a browser
        ("mnist/{split}-{part}.idx{n}-ubyte.gz", 0),
        ("mnist/{split}-{part}-idx{n}-ubyte", 1),
        ("mnist/{split}-{part}.idx{n}-ubyte.bin", 1),
        ("mnist/{split}-{part}-idx{n}-ubyte.gz", 2),
        ("mnist/{split}-{part}.idx{n}-ubyte.gz", 1),
        ("mnist/{split}_{part}_idx{n}_ubyte", 0),
        ("mnist/{split}-{part}-idx{n}-ubyte (1).gz", 1),
        ("mnist/Copy of {split}-{part}-idx{n}-ubyte.gz", 0),
        ("mnist/raw/{split}-{part}-idx{n}-ubyte", 0),
        ("mnist/{split}-{part}-idx{n}-ubyte/{split}-{part}-idx{n}-ubyte", 0),
        ("MNIST/raw/{split}-{part}-idx{n}-ubyte", 0),
        ("Mnist/{split}-{part}-idx{n}-ubyte.gz", 1),
    ],
)
def test_idx_files_are_recognised_by_content(root, layout, packed):
    before = load_mnist(root)
    rename_idx_files(root, layout, packed)
    assert same(load_mnist(root), before)


def test_idx_files_with_names_in_capitals_are_read(root):
    before = load_mnist(root)
    for path in idx_files(root):
        path.rename(path.with_name(path.name.upper()))
    assert same(load_mnist(root), before)


@pytest.mark.parametrize("copy", ["train-images-idx3-ubyte (1).gz", "raw/train-images.idx3-ubyte"])
def test_two_idx_files_for_one_part_must_have_the_same_content(root, copy):
    before = load_mnist(root)
    path, second = root / "mnist" / "train-images-idx3-ubyte.gz", root / "mnist" / copy
    content = idx_files(root)[path]
    second.parent.mkdir(exist_ok=True)
    second.write_bytes(content)
    assert same(load_mnist(root), before)
    write_idx(second, np.zeros((40, 28, 28)))
    message = load_error(settings(root))
    assert str(path) in message and str(second) in message


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x1f\x8b\x08"])
def test_idx_file_beside_that_of_a_failed_download_is_read(root, content):
    before = load_mnist(root)
    path = root / "mnist" / "train-images-idx3-ubyte.gz"
    path.rename(path.with_name("train-images-idx3-ubyte (1).gz"))
    path.write_bytes(content)
    assert same(load_mnist(root), before)


PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 9912422\n"
NOT_IT = {
    "page": PAGE,
    "page with a byte-order mark": "\ufeff<HTML>".encode(),
    "packed page": gzip.compress(PAGE, mtime=0),
    "pointer": POINTER,
    "error": b'{"message": "Not Found"}',
    "text": b"404: Not Found",
    "empty": b"",
    "packed empty": gzip.compress(b"", mtime=0),
    "zeros": bytes(2000),
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x03cnumpy.core.multiarray\n",
}


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("content", NOT_IT.values(), ids=NOT_IT.keys())
def test_idx_file_that_is_something_else_is_named_with_what_it_is(root, name, content):
    path = root / "mnist" / name
    path.write_bytes(content)
    message = load_error(settings(root))
    unpacked = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    assert str(path) in message and file_kind.describe(unpacked) in message


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "header", ["00000801", "00000803", "00000d03", "00000c01", "00000803000000"]
)
def test_idx_file_of_another_type_or_without_its_content_is_named(root, name, header):
    path = root / "mnist" / name
    path.write_bytes(bytes.fromhex(header))
    assert str(path) in load_error(settings(root))


def move(root: Path, folder: str) -> None:
    """Moves MNIST-M to another folder below `root`."""
    (root / "mnist_m").rename(root / "moved")
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    (root / "moved").rename(root / folder)


@pytest.mark.parametrize(
    "folder", ["mnist_m/mnist_m", "mnist_m/mnist_m.tar/a/mnist_m 2", "MNIST-M", "Mnist_M/unpacked"]
)
def test_unpacked_mnist_m_is_found_in_other_folders(root, folder):
    before = mnist_m.load(root / "mnist_m")
    move(root, folder)
    assert same(mnist_m.load(root / "mnist_m"), before)


@pytest.mark.parametrize("linked", [False, True])
def test_images_are_found_in_a_folder_within_their_folder_and_by_a_link(root, tmp_path, linked):
    before = mnist_m.load(root / "mnist_m")
    for split in ("train", "test"):
        folder, moved = root / "mnist_m" / f"mnist_m_{split}", tmp_path / split
        folder.rename(moved)
        if linked:
            folder.symlink_to(moved)
        else:
            folder.mkdir()
            moved.rename(folder / folder.name)
    assert same(mnist_m.load(root / "mnist_m"), before)


def test_copies_of_the_labels_must_be_the_same(root):
    copy = root / "mnist_m" / "mnist_m" / "mnist_m_test_labels.txt"
    copy.parent.mkdir()
    labels = root / "mnist_m" / copy.name
    copy.write_bytes(labels.read_bytes())
    load_task(settings(root))
    copy.write_text("00000000.png 1")
    message = load_error(settings(root))
    assert str(copy) in message and str(labels) in message


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("mnist_m.tar.gz", "w"),  # unpacked by a browser
        ("mnist_m.gz", "w"),
        ("mnist_m.tar", "w"),
        ("mnist_m.tar", "w:gz"),
        ("mnist_m", "w:gz"),
        ("mnist_m.tar.gz", "w:bz2"),
        ("mnist_m.tar.xz", "w:xz"),
        ("mnist_m.tar (1).gz", "w:gz"),
        ("MNIST-M.TGZ", "w:gz"),
        ("mnist_m.tar/mnist_m.tar", "w"),
    ],
)
def test_archive_of_mnist_m_is_recognised_by_content(root, name, mode):
    before = mnist_m.load(root / "mnist_m")
    packed = archive(root, name, mode)
    (packed.parent / "mnist_m.tar.gz.md5").write_text("859df31c91afe82e80e5012ba928f279")
    assert same(mnist_m.load(root / "mnist_m"), before)


@pytest.mark.parametrize("content", [b"", PAGE, POINTER])
def test_archive_beside_that_of_a_failed_download_is_read(root, content):
    before = mnist_m.load(root / "mnist_m")
    archive(root, "mnist_m.tar (1).gz")
    (root / "mnist_m" / "mnist_m.tar.gz").write_bytes(content)
    assert same(mnist_m.load(root / "mnist_m"), before)


@pytest.mark.parametrize("name", ["mnist_m.tar.gz", "mnist_m.tar"])
@pytest.mark.parametrize("content", NOT_IT.values(), ids=NOT_IT.keys())
def test_archive_that_is_something_else_is_named_with_what_it_is(root, name, content):
    path = archive(root, name)
    path.write_bytes(content)
    message = load_error(settings(root))
    assert str(path) in message and file_kind.describe(content) in message


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("part", [0.002, 0.3, 0.9])
def test_truncated_archive_of_any_compression_is_refused(root, mode, part):
    path = archive(root, "mnist_m.tar.gz", mode)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert str(path) in load_error(settings(root))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: b"\xfe\xff" + text.replace("\n", "\r\n").encode("utf-16-be"),
        lambda text: text.replace("\n", " \t\r\n").encode(),
        lambda text: text.replace("\n", "\r").rstrip().encode(),
        lambda text: text.replace(" ", "\t").encode("utf-8-sig") + b"\n\n",
    ],
)
def test_labels_are_read_as_editors_save_them(root, change, packed):
    before = mnist_m.load(root / "mnist_m")
    for split in ("train", "test"):
        labels = root / "mnist_m" / f"mnist_m_{split}_labels.txt"
        labels.write_bytes(change(labels.read_text()))
    if packed:
        archive(root)
    assert same(mnist_m.load(root / "mnist_m"), before)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("content", NOT_IT.values(), ids=NOT_IT.keys())
def test_labels_that_are_something_else_are_named(root, content, packed):
    labels = root / "mnist_m" / "mnist_m_test_labels.txt"
    labels.write_bytes(content)
    where = archive(root) if packed else labels
    message = load_error(settings(root))
    assert str(where) in message and labels.name in message
    kind = file_kind.describe(content)
    assert kind == file_kind.TEXT or kind in message


@pytest.mark.parametrize("content", [POINTER, PAGE])
def test_png_that_is_something_else_is_named_with_what_it_is(root, content):
    path = root / "mnist_m" / "mnist_m_test" / "00000003.png"
    path.write_bytes(content)
    message = load_error(settings(root))
    assert str(path) in message and file_kind.describe(content) in message
