"""Images of any kind are decoded alike, folders become domains, and faulty files are named."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daaa_jax.data import cache, folders, image_files, photos
from daaa_jax.errors import UserError

RED, BLUE, SIZE = (255, 0, 0), (0, 0, 255), 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def is_halves(pixels: np.ndarray, tolerance: int = 12) -> bool:
    left, right = pixels[:, :6].reshape(-1, 3), pixels[:, 10:].reshape(-1, 3)
    return (abs(left - np.array(RED)) <= tolerance).all() and (
        abs(right - np.array(BLUE)) <= tolerance
    ).all()


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.jpg", "a.tiff", "a.webp", "a.ppm", "a.gif"])
def test_every_known_format_is_read_at_any_aspect_ratio(name, tmp_path):
    quality = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
    quality = {"lossless": True} if name.endswith("webp") else quality
    halves().save(tmp_path / name, **quality)
    pixels = photos.read(tmp_path / name, SIZE)
    assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8
    assert is_halves(pixels)


@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA", "YCbCr"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png")
    halves().convert(mode).save(path)
    assert is_halves(photos.read(path, SIZE))


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        (np.full((8, 8), 200, np.uint8), 200),
        (np.full((8, 8), 200 * 257, np.uint16), 200),
        (np.full((8, 8), True), 255),
    ],
)
def test_grey_of_any_depth_is_the_same_grey(values, grey, tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(photos.read(path, SIZE), np.full((SIZE, SIZE, 3), grey))


def test_transparent_pixels_become_white(tmp_path):
    image = halves().convert("RGBA")
    clear = Image.new("L", image.size, 0)
    clear.paste(255, (0, 0, 20, 20))
    image.putalpha(clear)
    image.save(tmp_path / "a.png")
    pixels = photos.read(tmp_path / "a.png", SIZE)
    assert (pixels[:, 9:] == 255).all() and (pixels[:, :6] == RED).all()
    palette = Image.new("P", (8, 8), 0)
    palette.paste(1, (0, 0, 4, 8))
    palette.save(tmp_path / "b.png", transparency=0)
    assert (photos.read(tmp_path / "b.png", SIZE)[:, 9:] == 255).all()


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_image_that_is_transparent_everywhere_is_read_as_opaque(name, tmp_path):
    image = halves().convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / name, **({"lossless": True, "exact": True} if "webp" in name else {}))
    assert is_halves(photos.read(tmp_path / name, SIZE))


def test_transparent_grey_of_16_bits_becomes_white(tmp_path):
    values = np.full((8, 8), 30000, np.uint16)
    values[0] = 65535
    Image.fromarray(values).save(tmp_path / "a.png", transparency=30000)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["transparency"] == 30000
    assert (photos.read(tmp_path / "a.png", SIZE) == 255).all()


@pytest.mark.parametrize(("orientation", "angle"), [(3, 180), (6, 90), (8, 270)])
def test_image_is_turned_by_its_exif_orientation(orientation, angle, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves(32, 32).rotate(angle).save(tmp_path / "a.png", exif=exif)
    assert is_halves(photos.read(tmp_path / "a.png", SIZE))


def test_image_is_turned_even_if_another_part_of_its_exif_is_damaged(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x0110], exif[0x0132] = 6, "camera", "2026:01:01 00:00:00"
    halves(32, 32).rotate(90).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    content = (tmp_path / "a.jpg").read_bytes()
    # The types of two tags become such as Pillow reads and does not write.
    for tag in (b"\x01\x10\x00\x02", b"\x01\x32\x00\x02"):
        assert tag in content
        content = content.replace(tag, tag[:3] + b"\x07")
    (tmp_path / "a.jpg").write_bytes(content)
    assert is_halves(photos.read(tmp_path / "a.jpg", SIZE))


def png_claiming(width: int, height: int) -> bytes:
    """A small file whose header claims a large image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def bad_files(folder: Path) -> dict[str, str]:
    """Files that cannot be read, and a number or a part of Pillow's or the system's message."""
    halves(300, 300).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    halves(300, 300).save(folder / "whole.png")
    png = bytearray((folder / "whole.png").read_bytes())
    (folder / "whole.png").unlink()
    png[60:70] = bytes(10)
    for name, content in {
        "empty.jpg": b"",
        "text.jpg": b"<html>404</html>",
        "short.jpg": whole[: len(whole) // 2],
        "garbled.png": bytes(png),
        "bomb.png": png_claiming(60000, 60000),
        "large.png": png_claiming(20000, 9000),
        # PostScript would be handed to another program.
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "lost.jpg").symlink_to(folder / "nowhere.jpg")
    return {
        "empty.jpg": "empty",
        "text.jpg": "HTML",
        "short.jpg": "truncated",
        "garbled.png": "",
        "bomb.png": "3600000000",
        "large.png": "180000000",
        "script.jpg": "not an image",
        "lost.jpg": "no such file",
    }


@pytest.mark.parametrize("planar", ["separate", "contig"])
@pytest.mark.parametrize("bands", [2, 4])
def test_tiff_of_several_bands_without_colours_is_unreadable(bands, planar, tmp_path):
    """Pillow would read the first band alone."""
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    values = np.arange(bands * 32 * 32, dtype=np.uint8).reshape(bands, 32, 32)
    values = values if planar == "separate" else np.moveaxis(values, 0, -1)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig=planar)
    with pytest.raises(photos.UnreadableImage, match=rf"\b{bands} bands\b|cannot decode"):
        photos.read(path, SIZE)


def test_colours_of_a_tiff_are_read_beside_another_band(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    values = np.stack([np.full((32, 32), value, np.uint8) for value in (10, 20, 30, 40)])
    tifffile.imwrite(path, values, photometric="rgb", planarconfig="separate", extrasamples=[0])
    assert (photos.read(path, SIZE) == (10, 20, 30)).all()


@pytest.mark.parametrize("name", ["a.tif", "a"])
def test_raw_file_is_known_by_its_content(name, tmp_path):
    path = tmp_path / name
    Image.new("RGB", (32, 32)).save(path, "TIFF", tiffinfo={50706: b"\1\4\0\0"})
    with pytest.raises(photos.UnreadableImage, match=r"\braw\b.*\bDNG\b"):
        photos.read(path, SIZE)


def test_unreadable_image_has_a_reason(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(photos.UnreadableImage) as caught:
            photos.read(tmp_path / name, SIZE)
        assert reason in str(caught.value) and str(caught.value), name


def write_domain(root: Path, **classes: int) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 9), (number, i, 0)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("inner", ["", "images"])
def test_domain_is_found_by_its_layout(inner, tmp_path):
    write_domain(tmp_path / "webcam" / inner, mug=2, bike=3)
    (tmp_path / "webcam" / inner / "mug" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "webcam" / inner / "mug" / ".hidden.png").write_bytes(b"")
    (tmp_path / "webcam" / inner / ".git").mkdir()
    listing = folders.find(tmp_path / "webcam")
    assert listing.classes == ("bike", "mug")
    assert [path.name for path in listing.paths] == ["0.png", "1.png", "2.png", "0.png", "1.png"]
    np.testing.assert_array_equal(listing.labels, [0, 0, 0, 1, 1])
    assert not listing.others
    assert {path.name for path in listing.ignored} == {"Thumbs.db", ".hidden.png", ".git"}


def test_class_may_be_called_images(tmp_path):
    write_domain(tmp_path, images=2, mug=1)
    assert folders.find(tmp_path).classes == ("images", "mug")


def test_names_of_folders_within_a_class_must_be_printable_too(tmp_path):
    write_domain(tmp_path, cat=1)
    hidden = Path(os.fsdecode(os.fsencode(tmp_path / "cat") + b"/b\xff"))
    hidden.mkdir()
    (tmp_path / "cat" / "0.png").rename(hidden / "0.png")
    with pytest.raises(UserError, match=r"cat/b\\udcff/0\.png"):
        folders.find(tmp_path)


@pytest.mark.parametrize(
    "name", ["a\u202fb", "a\u00a0b", "\u5199\u771f\u3000", "\u0646\u200c\u0647"]
)
def test_names_with_spaces_of_other_scripts_are_accepted(name, tmp_path):
    write_domain(tmp_path, **{name: 2, "cat": 1})
    assert name in folders.find(tmp_path).classes


def test_names_are_equal_in_any_unicode_form(tmp_path):
    write_domain(tmp_path / "mac", **{"cafe\u0301": 1, "mug": 1})
    assert folders.find(tmp_path / "mac").classes == ("caf\u00e9", "mug")
    write_domain(tmp_path / "order", **{"e\u0301a": 1, "ezz": 2, "f": 3})
    listing = folders.find(tmp_path / "order")
    assert listing.classes == ("ezz", "f", "\u00e9a")
    assert np.bincount(listing.labels).tolist() == [2, 3, 1]
    write_domain(tmp_path / "mac", **{"caf\u00e9": 1})
    with pytest.raises(UserError, match="caf\u00e9"):
        folders.find(tmp_path / "mac")


def test_links_are_followed_except_in_cycles(tmp_path):
    write_domain(tmp_path / "elsewhere", mug=2, more=3)
    (tmp_path / "shop" / "mug").mkdir(parents=True)
    (tmp_path / "shop" / "mug" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "shop" / "mug" / "round").symlink_to(tmp_path / "shop")
    (tmp_path / "shop" / "pen").symlink_to(tmp_path / "elsewhere" / "mug")
    listing = folders.find(tmp_path / "shop")
    assert listing.classes == ("mug", "pen")
    assert np.bincount(listing.labels).tolist() == [3, 2]
    (tmp_path / "elsewhere" / "mug" / "on").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "elsewhere" / "more" / "back").symlink_to(tmp_path / "elsewhere" / "mug")
    assert len(image_files.scan(tmp_path / "shop" / "pen").images) == 2 + 3


def test_folder_without_read_permission_is_named(tmp_path, monkeypatch):
    write_domain(tmp_path, cat=1, dog=1)
    listdir = os.listdir

    def refuse(place):
        if str(place).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(place))
        return listdir(place)

    monkeypatch.setattr(image_files.os, "listdir", refuse)
    listing = folders.find(tmp_path)
    assert listing.unreadable == ((tmp_path / "dog", "permission denied"),)
    with pytest.raises(UserError, match=r"(?i)\bdog\b.*permission denied"):
        decode(listing, SIZE, "raise")


def test_flat_folder_has_images_and_no_classes(tmp_path):
    write_domain(tmp_path, new=2)
    listing = folders.find(tmp_path / "new")
    assert listing.classes == () and len(listing.paths) == 2
    assert (listing.labels == folders.UNKNOWN).all()


def message_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_folders_that_are_not_a_domain_are_refused(tmp_path):
    assert str(tmp_path / "nowhere") in message_of(folders.find, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    message = message_of(folders.find, tmp_path / "empty")
    assert str(tmp_path / "empty") in message and ".jpg" in message
    both = write_domain(tmp_path / "both", mug=1)
    halves().save(both / "loose.png")
    message = message_of(folders.find, both)
    assert "loose.png" in message and "mug" in message
    odd = write_domain(tmp_path / "odd", mug=1)
    (odd / "mug" / "0.png").rename(odd / "mug" / os.fsdecode(b"m\xe4rz.png"))
    message = message_of(folders.find, odd)
    assert r"m\udce4rz.png" in message and message.isprintable()


def decode(listing, size, on_error):
    """The readable images, and their rows in the listing."""
    decoded = folders.decode({"domain": listing}, size, on_error)["domain"]
    rows = np.array([listing.files.index(file) for file in decoded.files])
    np.testing.assert_array_equal(decoded.labels, listing.labels[rows])
    return decoded.images, rows


def test_images_are_decoded_once_until_a_file_changes(tmp_path, monkeypatch):
    root = write_domain(tmp_path / "d", bike=2, mug=1)
    images, read = decode(folders.find(root), SIZE, "raise")
    np.testing.assert_array_equal(images[:, 0, 0], [[0, 0, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(read, [0, 1, 2])
    calls = []
    monkeypatch.setattr(photos, "read", lambda path, *_: calls.append(path))
    again, _ = decode(folders.find(root), SIZE, "raise")
    np.testing.assert_array_equal(again, images)
    assert not calls
    monkeypatch.undo()
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (30, 9), (9, 9, 9)).save(root / "mug" / "0.png")
    changed, _ = decode(folders.find(root), SIZE, "raise")
    assert (changed[2] == 9).all()


def test_image_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    root, read = write_domain(tmp_path / "d", bike=2), photos.read

    def fail_on_second(path, *arguments):
        if path.name == "1.png":
            raise photos.UnreadableImage("too many open files")
        return read(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(photos, "read", fail_on_second)
        for _ in range(2):
            assert len(decode(folders.find(root), SIZE, "skip")[0]) == 1
    images, rows = decode(folders.find(root), SIZE, "raise")
    np.testing.assert_array_equal(images[:, 0, 0], [[0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(rows, [0, 1])


@pytest.mark.parametrize("place", ["cache", "no cache", "full disk"])
def test_images_are_the_same_wherever_they_are_kept(place, tmp_path, monkeypatch):
    root = write_domain(tmp_path / "d", bike=2, mug=1)
    if place == "no cache":
        (tmp_path / "file").touch()
        monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "file"))
    else:
        monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    if place == "full disk":
        monkeypatch.setattr(cache, "_SPARE", 2**80)
    images, _ = decode(folders.find(root), SIZE, "raise")
    np.testing.assert_array_equal(images[:, 0, 0], [[0, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert not list(tmp_path.glob("cache/*.tmp"))


def test_file_that_is_deleted_after_it_was_listed_is_unreadable(tmp_path):
    root = write_domain(tmp_path / "d", bike=2, mug=1)
    listing = folders.find(root)
    lost = root / "bike" / "0.png"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(UserError, match=f"{lost}: no such file"):
        decode(listing, SIZE, "raise")
    assert decode(listing, SIZE, "skip")[1].tolist() == [1, 2]
    lost.write_bytes(content)
    assert decode(listing, SIZE, "raise")[1].tolist() == [0, 1, 2]


def test_unreadable_images_are_all_named_or_left_out(tmp_path, capsys):
    root = write_domain(tmp_path / "d", bike=2, mug=1)
    reasons = bad_files(root / "mug")
    listing = folders.find(root)
    bad = [path.name for path in listing.paths if path.name in reasons]
    bad += [path.name for path, _ in listing.unreadable]
    assert set(bad) == set(reasons)
    message = message_of(decode, listing, SIZE, "raise")
    first, *lines = message.splitlines()
    assert str(len(bad)) in first and "data.on_error" in first
    for name in bad:
        (line,) = (line for line in lines if str(root / "mug" / name) in line)
        assert reasons[name] in line
    capsys.readouterr()
    images, read = decode(listing, SIZE, "skip")
    assert len(images) == 3 and [listing.paths[i].name for i in read] == ["0.png", "1.png", "0.png"]
    np.testing.assert_array_equal(listing.labels[read], [0, 0, 1])
    printed = capsys.readouterr().out
    assert str(len(bad)) in printed.splitlines()[0]
    assert all(str(root / "mug" / name) in printed for name in bad)


@pytest.mark.parametrize("bad", [1, 2])
def test_count_of_unreadable_images_is_in_the_singular_for_one(bad, tmp_path, capsys):
    root = write_domain(tmp_path / "d", bike=3)
    for number in range(bad):
        (root / "bike" / f"{number}.png").write_bytes(b"")
    what = "1 image" if bad == 1 else "2 images"
    assert message_of(decode, folders.find(root), SIZE, "raise").startswith(f"{what} cannot")
    decode(folders.find(root), SIZE, "skip")
    assert capsys.readouterr().out.startswith(f"{what} left out")


def test_domain_without_one_readable_image_is_refused(tmp_path):
    (tmp_path / "d" / "mug").mkdir(parents=True)
    bad_files(tmp_path / "d" / "mug")
    assert str(tmp_path / "d") in message_of(decode, folders.find(tmp_path / "d"), SIZE, "skip")
