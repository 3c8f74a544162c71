"""Files of MNIST and MNIST-M as browsers, mirrors and unpackers leave them."""

import gzip
from pathlib import Path

import digit_trees
import numpy as np
import pytest
from digit_trees import load_error, settings, write_idx

from daaa_jax.data import file_kind, mnist


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
    "packed page": gzip.compress(PAGE),
    "pointer": POINTER,
    "error": b'{"message": "Not Found"}',
    "text": b"404: Not Found",
    "empty": b"",
    "packed empty": gzip.compress(b""),
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
