"""What files are by their first bytes."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from daaa_jax.runtime import file_kind

PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("mnist_m/"))
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("train-images-idx3-ubyte", b"")
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def image(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("word", "content"),
    [
        ("HTML", PAGE.encode()),
        ("HTML", f"\ufeff\n<!-- saved --><HTML lang=en>{PAGE}".encode()),
        ("HTML", f"<?xml version='1.0'?>{PAGE}".encode()),
        ("HTML", b"<script>location='/login'</script>"),
        ("HTML", PAGE.encode("utf-16")),
        ("XML", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'><title>8</title></svg>"),
        ("JSON", b'{"message": "Not Found"}'),
        ("text", b"404: Not Found\n"),
        ("LFS", POINTER.encode()),
        ("LFS", b"version https://hawser.github.com/spec/v1\noid sha256:4d7a\n"),
        ("annex", b"../../.git/annex/objects/4f/MD5E-s9--0a.gz"),
        ("empty", b""),
        ("zeros", bytes(4096)),
        ("tar", tar()),
        ("tar archive, gzipped", gzip.compress(tar(), mtime=0)),
        ("HTML page, gzipped", gzip.compress(PAGE.encode(), mtime=0)),
        ("gzip", gzip.compress(b"", mtime=0)[:10]),
        ("zip", zipped()),
        ("NumPy", array()),
        ("PNG", image("PNG")),
        ("JPEG", image("JPEG")),
        ("WebP", image("WebP")),
        ("idx file of images", bytes([0, 0, 8, 3, 0, 0, 0, 1])),
        ("idx file of labels", bytes([0, 0, 8, 1, 0, 0, 0, 1])),
        ("idx file of another type", bytes([0, 0, 13, 3, 0, 0, 0, 1])),
    ],
)
def test_kind_of_a_file_is_named_by_its_content(word, content, tmp_path):
    assert word in file_kind.describe(content[: file_kind.HEAD])
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    assert word in file_kind.describe(file_kind.head(path))


@pytest.mark.parametrize("content", [b"\x9c\x01\xfe\x07 unknown", "5 Ziffern für Ω".encode()])
def test_unknown_content_has_no_kind(content):
    assert file_kind.describe(content) == ""
