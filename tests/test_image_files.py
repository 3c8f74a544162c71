"""One rule says which files are images, for training, the dataset check and predictions."""

import csv
import os
import pathlib
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import commands
import numpy as np
import pytest
from photo_trees import write_domain, write_image
from PIL import Image, PngImagePlugin, features

from daaa_jax import check
from daaa_jax.data import folders, image_files, image_lists, photos
from daaa_jax.errors import UserError
from daaa_jax.inference import find_files

SIZE = 16
RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))


# 1. What a system leaves.


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", ".git", "#recycle"]
    + ["@__thumb", "lost+found", "Photos.lrdata", ".picasaoriginals", "found.000"],
)
@pytest.mark.parametrize("place", [".", "mug", "mug/old"])
def test_folders_of_a_system_are_ignored_at_any_depth(place, name, tmp_path):
    write_domain(tmp_path / "shop", ("mug", "pen"), each=2)
    inside = tmp_path / "shop" / place / name / "bike"
    inside.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(inside / "thumbnail.jpg")
    listing = folders.find(tmp_path / "shop")
    assert listing.classes == ("mug", "pen") and len(listing.paths) == 4
    assert [path.name for path in listing.ignored] == [name]
    assert inside.parent not in find_files([tmp_path / "shop"], image_lists.Options())


@pytest.mark.parametrize(
    ("name", "inside"),
    [("CVS", "Entries"), ("RCS", "a.jpg,v"), ("SCCS", "s.notes.txt"), ("RECYCLED", "INFO2")]
    + [("RECYCLER", "S-1-5-21"), ("CaptureOne", "Cache")],
)
@pytest.mark.parametrize("place", [".", "mug"])
def test_folder_named_as_a_class_is_of_a_system_only_with_its_files(place, name, inside, tmp_path):
    shop = write_domain(tmp_path / "shop", ("mug", "pen"), each=2)
    write_domain(shop / place, (name,), each=3)
    assert len(folders.find(shop).paths) == 7 and not folders.find(shop).ignored
    (shop / place / name / inside).write_text("of a system")
    listing = folders.find(shop)
    assert len(listing.paths) == 4 and listing.ignored == (shop / place / name,)
    assert len(folders.find(shop / place / name).paths) == 3  # given itself


@pytest.mark.parametrize("name", [".net", "lost+found", "found.000"])
def test_ignored_folder_that_holds_images_is_reported(name, tmp_path, capsys):
    shop = write_domain(tmp_path / "shop", ("mug", "pen"), each=1)
    (shop / name).mkdir()
    for inside in ("notes.txt", "._000.jpg"):
        (shop / name / inside).write_text("no image")
    folders.decode({"shop": folders.find(shop)}, SIZE, "raise")
    check.main([str(shop)])
    assert "hold images" not in capsys.readouterr().out
    write_domain(shop, (name,), each=1)
    folders.decode({"shop": folders.find(shop)}, SIZE, "raise")
    assert str(shop / name) in capsys.readouterr().out
    check.main([str(shop)])
    assert str(shop / name) in capsys.readouterr().out.split("hold images")[1]


@pytest.mark.parametrize("name", [".@__thumb", ".ipynb_checkpoints"])
def test_ignored_folder_within_a_class_is_not_reported_as_a_class(name, tmp_path, capsys):
    shop = write_domain(tmp_path / "shop", ("mug", "pen"), each=1)
    write_domain(shop / "mug", (name,), each=1)
    folders.decode({"shop": folders.find(shop)}, SIZE, "raise")
    assert check.main([str(shop)]) == 0
    assert "hold images" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "Thumbs.db",
        "desktop.ini",
        "._a.jpg",
        "~$a.jpg",
        "Icon\r",
        "a.jpg_original",
        "a.tiff_original",
    ]
    + ["a.jpg~", "a.png.part", "a.jpg.crdownload", "AlbumArtSmall.jpg", "a.jpg.filepart"]
    + [
        "Thumbs.db:encryptable",
        ".notes.txt.icloud",
        "catalogue.lrcat.lock",
        "a.jpg_exiftool_tmp",
        "MVI_1.THM",
        "catalogue.lrcat-journal",
    ],
)
def test_files_of_a_system_are_ignored(name, tmp_path):
    (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    found = image_files.scan(tmp_path)
    assert found == image_files.Files(ignored=[tmp_path / name])


@pytest.mark.parametrize("name", ["found.1.jpg", "Thumbs.db.jpg", "a.lrcat.png"])
def test_images_whose_names_begin_as_those_of_a_system_are_images(name, tmp_path):
    write_image(tmp_path / name, 0, 0)
    assert image_files.scan(tmp_path).images == [tmp_path / name]


@pytest.mark.parametrize("name", ["labels.csv", "README.md"])
def test_link_to_a_file_that_is_gone_is_no_class(name, tmp_path):
    write_domain(tmp_path, ("bike", "mug"), each=1)
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    listing = folders.find(tmp_path)
    assert listing.classes == ("bike", "mug") and listing.unreadable[0][0] == tmp_path / name


def test_image_that_icloud_has_not_downloaded_is_unreadable(tmp_path):
    write_domain(tmp_path, ("trips.icloud", "mug"), each=1)
    (tmp_path / "mug" / ".a.jpg.icloud").write_bytes(b"bplist00")
    listing = folders.find(tmp_path)
    assert listing.classes == ("mug", "trips.icloud") and len(listing.paths) == 3
    with pytest.raises(UserError, match=r"(?s)1 image .*\.a\.jpg\.icloud: .*iCloud"):
        folders.decode({"shop": listing}, SIZE, "raise")


@pytest.mark.parametrize("content", ["nothing", "Thumbs.db", "no folder"])
def test_class_folder_without_an_image_is_a_class(content, tmp_path, capsys):
    write_domain(tmp_path / "shop", ("bike", "mug"), each=1)
    place = tmp_path / "shop" / "pen"
    if content == "no folder":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
    if "." in content:
        (place / content).write_bytes(b"")
    listing = folders.find(tmp_path / "shop")
    assert listing.classes == ("bike", "mug", "pen") and len(listing.paths) == 2
    assert bool(listing.unreadable) == (content == "no folder")
    assert check.main([str(tmp_path / "shop")]) == 1
    assert "'pen'" in capsys.readouterr().out


# 2. and 3. Images, whatever the suffix, and those that cannot be read.


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jfif", "JPEG"), ("b.pgm", "PPM"), ("c", "PNG"), ("d.dat", "WEBP"), ("e.jpe", "JPEG")]
    + [("f.JPG", "PNG"), ("g.jp2", "JPEG2000"), ("h.tga", "TGA"), ("i.v2", "BMP")],
)
def test_what_pillow_reads_is_an_image_whatever_its_suffix(name, kind, tmp_path):
    Image.new("RGB", (9, 9), (200, 100, 50)).save(tmp_path / name, kind)
    assert image_files.scan(tmp_path).images == [tmp_path / name]
    pixels = photos.read(tmp_path / name, SIZE)
    assert abs(pixels.reshape(-1, 3).mean(0) - [200, 100, 50]).max() < 4


def test_photo_cd_is_read(tmp_path):
    content = bytearray(96 * 2048 + 768 * 512 * 3 // 2)
    content[2048:2052] = b"PCD_"
    content[96 * 2048 :] = bytes(768 * 512 * 3 // 2 // 256 * [*range(256)])
    (tmp_path / "img0001").write_bytes(content)
    assert image_files.scan(tmp_path).images == [tmp_path / "img0001"]
    assert np.ptp(photos.read(tmp_path / "img0001", SIZE)) > 50


def test_spider_is_read_by_its_values(tmp_path):
    Image.fromarray((RAMP * 7 - 3).astype(np.float32)).save(tmp_path / "a.dat", "SPIDER")
    (tmp_path / "zeros.dat").write_bytes(bytes(4096))
    (tmp_path / "floats.dat").write_bytes(RAMP.astype(np.float32).tobytes())
    assert image_files.scan(tmp_path).images == [tmp_path / "a.dat"]
    pixels = photos.read(tmp_path / "a.dat", 64)
    np.testing.assert_allclose(pixels, np.broadcast_to(RAMP[..., None] * 255, pixels.shape), atol=1)


@pytest.mark.parametrize("name", ["a.fits", "a"])
def test_formats_whose_values_pillow_misreads_are_no_images(name, tmp_path):
    cards = ("SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 8", "END")
    head = "".join(card.ljust(80) for card in cards).ljust(2880)
    (tmp_path / name).write_bytes(head.encode() + bytes(2880))
    assert image_files.scan(tmp_path).others == [tmp_path / name]


@pytest.mark.parametrize("names", [("a", "b.dat", "c.jfif"), ("d.v2", "e.jpg_", "f.png.bak")])
def test_every_file_of_a_folder_has_a_prediction_whatever_its_suffix(names, tiny_run, tmp_path):
    place = tmp_path / "new"
    place.mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (9, 9), (99 * number, 0, 0)).save(place / name, "PNG")
    (place / "clip.mov").write_bytes(b"no image")
    assert commands.call("predict", f"--workdir={tiny_run}", place).returncode == 0
    rows = list(csv.DictReader((tiny_run / "predictions.csv").read_text().splitlines()))
    assert {Path(row["file"]).name for row in rows} == {*names, "clip.mov"}
    assert [Path(row["file"]).name for row in rows if row["error"]] == ["clip.mov"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.HEIC", b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
        ("a", b"\0\0\0\x18ftypmif1" + bytes(100), "HEIC"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("a.png", b"<!DOCTYPE html><html><body>404", "HTML"),
        ("a.webp", b"", "empty"),
        ("a.nef", b"MM\0*" + bytes(100), "raw"),
        ("a.DNG", b"II*\0" + bytes(100), "raw"),
        ("a.tif", b"MM\0*" + bytes(100), "TIFF"),
        ("a", b"II+\0" + bytes(100), "TIFF"),
        ("a.jxl", b"\xff\x0a" + bytes(100), "JPEG XL"),
        ("a.psd", b"8BPS\0\1" + bytes(100), "Photoshop"),
        ("a", b"v/1\x01" + bytes(100), "OpenEXR"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        ("cut", b"\xff\xd8\xff\xe0\0\x10JFIF\0", ""),
    ],
)
def test_unreadable_image_is_named_with_what_it_is(name, content, reason, tmp_path):
    write_domain(tmp_path / "shop", ("mug", "pen"), each=1)
    path = tmp_path / "shop" / "pen" / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        folders.decode({"shop": folders.find(tmp_path / "shop")}, SIZE, "raise")
    (line,) = (line for line in str(caught.value).splitlines() if str(path) in line)
    assert reason in line
    with pytest.raises(photos.UnreadableImage):
        photos.read(path, SIZE)


@pytest.mark.parametrize("name", ["lost.jpg", "lost"])
def test_links_that_lead_nowhere_are_unreadable(name, tmp_path):
    shop = write_domain(tmp_path / "shop", ("mug", "pen"), each=1)
    for place in (shop, shop / "pen"):
        (place / name).symlink_to(tmp_path / "nowhere")
        listing = folders.find(shop)
        assert [path for path, _ in listing.unreadable] == [place / name]
        with pytest.raises(UserError, match=rf"{place / name}: .*nowhere"):
            folders.decode({"shop": listing}, SIZE, "raise")
        assert len(folders.decode({"shop": listing}, SIZE, "skip")["shop"].images) == 2
        (place / name).unlink()


def test_unreadable_entry_is_named_where_its_folder_cannot_be_entered(tmp_path, monkeypatch):
    shop = write_domain(tmp_path / "shop", ("mug", "pen"), each=1)

    def refuse(method):
        def call(path, *arguments, **named):
            if "pen/" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return method(path, *arguments, **named)

        return call

    for name in ("stat", "is_symlink"):  # as of a folder that can be listed but not entered
        monkeypatch.setattr(pathlib.Path, name, refuse(getattr(pathlib.Path, name)))
    found = image_files.scan(shop)
    assert [path.name for path in found.images] == ["000.jpg"]
    assert found.unreadable == [(shop / "pen" / "000.jpg", "permission denied")]


@pytest.mark.parametrize("count", [2, 8])
def test_folders_that_link_to_each_other_are_listed_once(count, tmp_path):
    shop = write_domain(tmp_path / "shop", [f"class{n}" for n in range(count)], each=1)
    for folder in shop.iterdir():
        for other in shop.iterdir():
            if other != folder:
                (folder / f"to_{other.name}").symlink_to(other)
    assert len(image_files.scan(shop).images) == count**2


def test_folder_with_a_link_to_it_in_the_same_class_is_listed_once(tmp_path):
    shop = write_domain(tmp_path / "shop", ("mug", "pen"), each=1)
    write_domain(shop / "pen", ("2024",), each=3)
    (shop / "pen" / "latest").symlink_to(shop / "pen" / "2024")
    (shop / "quill").symlink_to(shop / "pen")
    listing = folders.find(shop)
    assert np.bincount(listing.labels).tolist() == [1, 4, 4]


# 4. Anything else.


@pytest.mark.parametrize("name", ["notes.txt", "labels.csv", "README", "model.pth", "clip.mov"])
def test_other_files_are_passed_over_and_counted(name, tmp_path, capsys):
    shop = write_domain(tmp_path / "shop", ("mug", "pen"), each=1)
    (shop / "pen" / name).write_text("P 5 photos of pens\n")
    listing = folders.find(shop)
    assert listing.others == (shop / "pen" / name,)
    folders.decode({"shop": listing}, SIZE, "raise")
    assert name in capsys.readouterr().out
    assert shop / "pen" / name in find_files([shop], image_lists.Options())


@pytest.mark.parametrize("name", ["notes.txt", "README"])
@pytest.mark.parametrize(
    "text",
    ["BM25 ranks documents by their terms", "P3 was the best of all runs", "P6\nP7\n", "BM\u00fc"],
)
def test_text_that_starts_as_an_image_is_none(name, text, tmp_path):
    (tmp_path / name).write_text(text * 9)
    assert image_files.scan(tmp_path).others == [tmp_path / name]


@pytest.mark.parametrize("first", [b"BM" + bytes(60), b"\x28\0\0\0" + bytes(60)])
def test_numbers_that_start_as_an_image_are_none_or_unreadable(first, tmp_path):
    (tmp_path / "table.bin").write_bytes(first)
    found = image_files.scan(tmp_path)
    assert found.images == ([tmp_path / "table.bin"] if first[:2] == b"BM" else [])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint64, np.complex64])
@pytest.mark.parametrize("name", ["a.tif", "a"])
def test_tiff_of_a_number_type_that_pillow_lacks_is_named(name, dtype, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / name, (RAMP * 255).astype(dtype))
    assert image_files.scan(tmp_path).images == [tmp_path / name]
    with pytest.raises(photos.UnreadableImage, match="TIFF image.*Pillow"):
        photos.read(tmp_path / name, SIZE)


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg"])
def test_pipes_are_passed_over_without_being_opened(name, tmp_path, monkeypatch):
    def open_pipe(*_, **__):
        raise AssertionError("would wait for a writer")

    os.mkfifo(tmp_path / name)
    monkeypatch.setattr(photos, "starts_as_image", open_pipe)
    monkeypatch.setattr(photos.Image, "open", open_pipe)
    (tmp_path / "link").symlink_to(tmp_path / name)
    assert sorted(image_files.scan(tmp_path).others) == [tmp_path / "link", tmp_path / name]
    with pytest.raises(photos.UnreadableImage, match="not a file"):
        photos.read(tmp_path / name, SIZE)


# Splits above the classes, and names.


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("Training", "TEST"), ("valid",), ("train2017", "val2017")]
    + [("images_train", "images_test"), ("my-train-1", "my-test-1"), ("trn", "tst")]
    + [("trainval", "test"), ("train", "validate"), ("labeled", "unlabeled"), ("gallery", "query")]
    + [("training_set", "test_set"), ("train ", "dev"), ("dev", "eval"), ("train-images", "test")]
    + [("trainA", "trainB", "testA"), ("train", "test", "samples"), ("train", "extra")],
)
@pytest.mark.parametrize("inner", ["", "images"])
def test_splits_above_the_classes_are_refused(names, inner, tmp_path):
    for name in names:
        write_domain(tmp_path / "shop" / inner / name, ("mug", "pen"), each=1)
    with pytest.raises(UserError) as caught:
        folders.find(tmp_path / "shop")
    assert str(tmp_path / "shop" / inner / names[0]) in str(caught.value)
    assert folders.find(tmp_path / "shop" / inner / names[0]).classes == ("mug", "pen")


@pytest.mark.parametrize(
    "names",
    [("seg_train", "seg_test"), ("query", "support"), ("fold_0", "fold_1")]
    + [("01_train", "02_val"), ("train_v2", "test_v1"), ("cifar_trainset", "cifar_testset")],
)
def test_parts_that_hold_the_same_classes_are_refused(names, tmp_path):
    for name in names:
        write_domain(tmp_path / name, ("mug", "pen"), each=1)
    if "seg" in names[0]:
        write_domain(tmp_path, ("seg_pred",), each=1)
    with pytest.raises(UserError, match=f"{tmp_path / names[0]}$"):
        folders.find(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("amazon", "dslr"),
        ("steam train", "bullet train"),
        ("PublicTest", "PrivateTest"),
        ("valley", "oval"),
        ("contest", "valve"),
    ],
)
def test_other_folders_that_hold_the_same_folders_are_warned_of(names, tmp_path, capsys):
    for name in names:
        write_domain(tmp_path / name, ("day", "night"), each=1)
    assert folders.find(tmp_path).classes == tuple(sorted(names))
    warning = capsys.readouterr().out
    assert warning.startswith("warning: ") and str(tmp_path) in warning and names[0] in warning


def test_split_beside_the_classes_that_it_holds_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "test"):
        write_domain(place, ("bike", "mug", "pen"), each=1)
    with pytest.raises(UserError, match=f"{tmp_path / 'test'}$"):
        folders.find(tmp_path)


@pytest.mark.parametrize(
    "names",
    [("bus", "train"), ("bus", "car", "plane", "Train"), ("invalid", "valid"), ("evals", "trained")]
    + [("testament", "bible"), ("trainer", "sandal"), ("valley", "developer")]
    + [("bullet train", "steam train"), ("test tube", "train station"), ("query", "reply")],
)
@pytest.mark.parametrize("inner", ["", "2024"])
def test_classes_may_be_called_as_splits_are(names, inner, tmp_path):
    for name in names:
        write_domain(tmp_path / name, (inner,), each=1)
    assert folders.find(tmp_path).classes == tuple(sorted(names))


def test_class_of_many_may_be_called_train_and_have_folders(tmp_path):
    for name in ("bus", "car", "train"):
        write_domain(tmp_path / name, ("day", "night"), each=1)
    assert folders.find(tmp_path).classes == ("bus", "car", "train")


@pytest.mark.parametrize("names", [("Mug", "mug"), ("coffee mug", "coffeemug"), ("pen", "pen ")])
def test_classes_that_differ_in_case_or_spaces_are_found(names):
    assert folders.similar_classes(("bike", *names)) == [f"{names[0]!r} and {names[1]!r}"]


def test_classes_that_differ_in_case_or_spaces_are_found_among_many_at_once():
    names = [f"class {number}" for number in range(50_000)]
    started = time.process_time()
    assert folders.similar_classes([*names, "Class7"]) == ["'class 7' and 'Class7'"]
    assert time.process_time() - started < 5


# How values become pixels.


def write_values(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    ("dtype", "low", "high", "black", "white"),
    [
        (np.uint16, 0, 4095, 0, 4095),
        (np.uint16, 0, 1000, 0, 1023),
        (np.uint16, 0, 60000, 0, 65535),
        (np.uint16, 0, 200, 0, 255),
        (np.int32, -1000, 3000, -1000, 3000),
        (np.float32, 0, 1.25, 0, 1.25),
        (np.float32, 270, 310, 270, 310),
    ],
)
def test_values_are_scaled_by_their_number_type(dtype, low, high, black, white, tmp_path):
    values = (low + RAMP * (high - low)).round(2).astype(dtype)
    path = write_values(tmp_path / "a.tif", values)
    (found,) = photos.value_ranges([path]).values()
    np.testing.assert_allclose(found, (black, white), atol=0.01)
    expected = (values.astype(float) - black) / (white - black) * 255
    np.testing.assert_allclose(photos.read(path, 64)[..., 0], expected, atol=1)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_images_of_a_domain_are_scaled_alike(dtype, tmp_path):
    dark = write_values(tmp_path / "shop" / "mug" / "dark.tif", (RAMP * 500).astype(dtype))
    light = write_values(tmp_path / "shop" / "pen" / "light.tif", (RAMP * 4000).astype(dtype))
    write_values(tmp_path / "shop" / "pen" / "plain.png", (RAMP * 100).astype(np.uint8))
    decoded = folders.decode({"shop": folders.find(tmp_path / "shop")}, 64, "raise")["shop"]
    assert [int(image.max()) for image in decoded.images] == pytest.approx([31, 252, 100], abs=3)
    assert photos.read(dark, 64, decoded.ranges).max() == decoded.images[0].max()
    assert photos.read(dark, 64).max() > 240  # alone, by its own range
    again = folders.decode({"shop": folders.find(tmp_path / "shop")}, 64, "raise")["shop"]
    assert again.ranges == decoded.ranges == photos.value_ranges([dark, light])


def test_unsigned_values_of_32_bits_are_not_negative(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", (RAMP * (2**32 - 1)).astype(np.uint32))
    pixels = photos.read(tmp_path / "a.tif", 64)[..., 0]
    np.testing.assert_allclose(pixels, RAMP * 255, atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_make_an_image_unreadable(value, tmp_path):
    values = RAMP.astype(np.float32)
    values[3, 4] = value
    with pytest.raises(photos.UnreadableImage, match="NaN"):
        photos.read(write_values(tmp_path / "a.tif", values), SIZE)
    assert photos.value_ranges([tmp_path / "a.tif"]) == {}


def test_images_of_8_bits_are_not_rescaled(tmp_path):
    path = write_values(tmp_path / "a.png", (RAMP * 20).astype(np.uint8))
    assert photos.value_ranges([path]) == {}
    assert photos.read(path, 64).max() == 20


def write_deep_png(path, values, transparent=None):
    """A PNG of 16 bits: uint16 `[H,W,C]` of two (LA), three or four (RGBA) channels."""

    def chunk(name, data):
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    clear = b"" if transparent is None else chunk(b"tRNS", struct.pack(">3H", *transparent))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + clear
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


COLOURS = np.stack([RAMP, RAMP.T, 1 - RAMP], axis=-1)  # between 0 and 1


@pytest.mark.parametrize("bits", [7, 8, 9, 12, 15, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_is_read_by_the_bits_in_use(channels, bits, tmp_path):
    values = (COLOURS * (2**bits - 1)).astype(np.uint16)
    opaque = np.full((64, 64, 1), 65535, np.uint16)
    with_alpha = np.concatenate([values[..., : 1 if channels == 2 else 3], opaque], axis=-1)
    path = write_deep_png(tmp_path / "a.png", values if channels == 3 else with_alpha)
    assert photos.value_ranges([path]) == {"unsigned": [0, max(255, 2**bits - 1)]}
    expected = (values[..., :1] if channels == 2 else values) / (2 ** max(8, bits) - 1) * 255
    np.testing.assert_allclose(
        photos.read(path, 64), np.broadcast_to(expected, (64, 64, 3)), atol=1
    )


@pytest.mark.parametrize("largest", [4095, 65535])
def test_transparent_colour_of_16_bits_becomes_white(largest, tmp_path):
    values = np.zeros((64, 64, 3), np.uint16)
    values[0, 0], values[32:], values[32:, :32] = largest, (5, 6, 7), (5, 6, 8)
    pixels = photos.read(write_deep_png(tmp_path / "a.png", values, transparent=(5, 6, 7)), 64)
    assert (pixels[33:, 33:] == 255).all() and (pixels[33:, :31] < 2).all()


def test_dark_colour_of_16_bits_is_read_as_its_domain(tmp_path):
    values = (COLOURS * 4095).astype(np.uint16)
    write_deep_png(tmp_path / "shop" / "mug" / "a.png", values)
    write_deep_png(tmp_path / "shop" / "mug" / "b.png", values // 256)
    write_deep_png(tmp_path / "shop" / "pen" / "c.png", values)
    decoded = folders.decode({"shop": folders.find(tmp_path / "shop")}, 64, "raise")["shop"]
    assert decoded.ranges == {"unsigned": [0, 4095]}
    assert [int(image.max()) for image in decoded.images] == [255, 0, 255]
    bright = photos.read(tmp_path / "shop" / "pen" / "c.png", 64, {"unsigned": [0, 65535]})
    np.testing.assert_allclose(bright, COLOURS * 15, atol=1)
    clipped = photos.read(tmp_path / "shop" / "pen" / "c.png", 64, {"unsigned": [0, 1023]})
    np.testing.assert_allclose(clipped, np.clip(COLOURS * 4 * 255, 0, 255), atol=1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("largest", [4095, 65535])
def test_tiff_of_16_bit_colour_is_read_in_any_layout(largest, planes, compression, order, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = (COLOURS * largest).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif",
        values if planes == "contig" else np.moveaxis(values, -1, 0),
        photometric="rgb", planarconfig=planes, compression=compression, byteorder=order,
    )  # fmt: skip
    if planes == "separate" and largest == 4095:
        with pytest.raises(photos.UnreadableImage, match="16-bit colour"):
            photos.read(tmp_path / "a.tif", 64)
    else:
        np.testing.assert_allclose(photos.read(tmp_path / "a.tif", 64), COLOURS * 255, atol=1)


@pytest.mark.parametrize("largest", [4095, 65535])
def test_dark_planar_colour_of_16_bits_is_read_in_a_domain_that_uses_all_bits(largest, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for name, scale in (("dark", 12_000), ("bright", largest)):
        values = np.moveaxis((COLOURS * min(scale, largest)).astype(np.uint16), -1, 0)
        path = tmp_path / "shop" / "mug" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, values, photometric="rgb", planarconfig="separate")
    listing = folders.find(tmp_path / "shop")
    if largest == 4095:
        with pytest.raises(UserError, match="2 images(.|\n)* planar"):
            folders.decode({"shop": listing}, 64, "raise")
        return
    decoded = folders.decode({"shop": listing}, 64, "raise")["shop"]
    for image, scale in zip(decoded.images, (1, 12_000 / 65535), strict=True):
        np.testing.assert_allclose(image, COLOURS * scale * 255, atol=1.5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.int8, -128, 127), (np.int8, 20, 90), (np.int16, -900, 900), (np.int32, -70000, 5)]
    + [(np.uint16, 0, 4095), (np.float32, -1, 3)],
)
def test_grey_tiff_is_read_in_any_layout(dtype, low, high, compression, order, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = (low + RAMP * (high - low)).round(2).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression, byteorder=order)
    expected = (values.astype(float) - low) / (high - low) * 255
    np.testing.assert_allclose(photos.read(tmp_path / "a.tif", 64)[..., 0], expected, atol=1)
    (found,) = photos.value_ranges([tmp_path / "a.tif"]).values()
    np.testing.assert_allclose(found, (low, high), atol=1)


@pytest.mark.parametrize(
    ("dtype", "largest"), [(np.uint8, 255), (np.uint16, 4095), (np.float32, 1)]
)
def test_grey_whose_zero_is_white_is_inverted(dtype, largest, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = (RAMP * largest).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite", byteorder="<")
    np.testing.assert_allclose(
        photos.read(tmp_path / "a.tif", 64)[..., 0], 255 - RAMP * 255, atol=1
    )


def test_tiff_that_is_cut_short_is_named(tmp_path):
    write_values(tmp_path / "a.tif", (RAMP * 255).astype(np.uint8))
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:2000])
    with pytest.raises(photos.UnreadableImage, match="cut short|truncated"):
        photos.read(tmp_path / "a.tif", SIZE)


# Large files.


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_values_take_a_few_bytes_per_pixel(dtype, tmp_path):
    values = np.tile((RAMP * 4095).astype(dtype), (32, 32))
    write_values(tmp_path / "a.tif", values)
    tracemalloc.start()
    photos.read(tmp_path / "a.tif", SIZE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * values.size


def test_jpeg_of_108_megapixels_is_read_at_a_reduced_size(tmp_path, monkeypatch):
    Image.new("L", (12000, 9000), 120).save(tmp_path / "a.jpg", quality=30)
    with photos.opened(tmp_path / "a.jpg", SIZE) as image:
        assert image.size == (1500, 1125)
    assert abs(photos.read(tmp_path / "a.jpg", SIZE).astype(int) - 120).max() < 3


@pytest.mark.parametrize(("name", "progressive", "waits"), [
    ("a.jpg", False, False), ("a.jpg", True, True), ("a.png", False, True),
])  # fmt: skip
def test_only_images_that_are_large_in_memory_wait_for_each_other(
    name, progressive, waits, tmp_path
):
    options = {"progressive": progressive} if name == "a.jpg" else {}
    Image.new("L", (6000, 5000), 120).save(tmp_path / name, **options)
    with photos.opened(tmp_path / name, SIZE):
        assert photos._one_large.locked() == waits


def test_png_of_120_megapixels_is_read(tmp_path):
    Image.new("1", (12000, 10000), 1).save(tmp_path / "a.png")
    assert (photos.read(tmp_path / "a.png", SIZE) == 255).all()


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
@pytest.mark.parametrize("name", ["a.avif", "a.jpg"])
def test_avif_is_read(name, tmp_path):
    Image.new("RGB", (9, 9), (200, 100, 50)).save(tmp_path / name, "AVIF")
    assert abs(photos.read(tmp_path / name, SIZE).reshape(-1, 3).mean(0) - [200, 100, 50]).max() < 9


@pytest.mark.parametrize("megabytes", [2, 70])
def test_png_with_megabytes_of_metadata_is_read(megabytes, tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "x" * (megabytes * 2**20), zip=True)
    Image.new("RGB", (9, 9), (200, 100, 50)).save(tmp_path / "a.png", pnginfo=text)
    assert (photos.read(tmp_path / "a.png", SIZE) == (200, 100, 50)).all()
