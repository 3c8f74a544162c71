"""Images in files of records: random access, conversion from photos, download from a store."""

import json
import pickle
import re

import numpy as np
import pytest
from photo_trees import write_domain, write_image
from tiny import make_images

from daaa_jax import check, convert
from daaa_jax.data import folders, photos, record_sets, records
from daaa_jax.data.images import Images, chosen
from daaa_jax.errors import UserError
from daaa_jax.runtime.files import checksum

IMAGES = make_images(11, seed=1, size=8)
CLASSES = ("mug", "pen")
SIZE = 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))


def numbers_in(text, path) -> list[str]:
    """The numbers in a text that must name a path, beside those of the path."""
    assert str(path) in text
    return re.findall(r"\d+", text.replace(str(path), ""))


def made(folder, images=IMAGES, sha256="identity") -> Images:
    """The images in three files."""
    files = []
    for number, first in enumerate((0, 4, 8)):
        path = folder / f"{number}{records.SUFFIX}"
        files.append((path, records.write(path, images[first : first + 4])))
    return records.read(files, images.shape[1:], sha256)


def test_rows_of_files_read_like_those_of_one_array(tmp_path):
    found = made(tmp_path)
    assert found.shape == IMAGES.shape and found.nbytes == IMAGES.nbytes and len(found) == 11
    rows = np.array([10, 0, 4, 3, 3])
    np.testing.assert_array_equal(found[rows], IMAGES[rows])
    np.testing.assert_array_equal(found[2:9], IMAGES[2:9])
    np.testing.assert_array_equal(found, IMAGES)
    part = chosen(found, np.array([9, 1, 5]))
    np.testing.assert_array_equal(part, IMAGES[[9, 1, 5]])
    np.testing.assert_array_equal(chosen(part, np.array([2, 0])), IMAGES[[5, 9]])
    both = Images(found, IMAGES[:2])
    np.testing.assert_array_equal(both[np.array([12, 10])], IMAGES[[1, 10]])


def test_records_are_pickled_by_their_files(tmp_path):
    images = make_images(12, size=64)
    for found in (whole := made(tmp_path, images), Images(whole), chosen(whole, np.arange(12))):
        content = pickle.dumps(found)
        assert len(content) < 2000
        np.testing.assert_array_equal(pickle.loads(content), images)
        assert checksum(pickle.loads(content)) == checksum(found)


def test_checksum_of_records_reads_none_of_them(tmp_path):
    found = made(tmp_path)
    other, before = made(tmp_path, sha256="other"), checksum(found)
    for path in tmp_path.glob("*"):
        path.unlink()
    assert checksum(found) == before
    assert checksum(other) != before


def test_checksum_depends_on_which_images_are_chosen(tmp_path):
    """Else a source network would be reused that was trained on what another run holds out."""
    whole = made(tmp_path)
    count = len(whole)
    sums = [
        checksum(part)
        for part in (whole, chosen(whole, np.arange(3)), chosen(whole, np.arange(3, 6)))
    ]
    assert len(set(sums)) == 3
    assert checksum(chosen(whole, np.array([0, 1, 2]))) == sums[1]
    assert checksum(chosen(chosen(whole, np.arange(3)), np.array([2]))) not in sums
    assert count >= 6


def test_write_that_fails_leaves_nothing(tmp_path):
    def images():
        yield IMAGES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write(tmp_path / f"a{records.SUFFIX}", images())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["opened", "written", "closed"])
def test_full_disk_is_reported_in_one_line(when, tmp_path, monkeypatch):
    class Full:
        def __init__(self, place, options):
            self.fail("opened")

        def fail(self, now):
            if now == when:
                raise RuntimeError("write() failed: No space left on device\nand more")

        def write(self, content):
            self.fail("written")

        def close(self):
            self.fail("closed")

    module = "array_record.python.array_record_module.ArrayRecordWriter"
    monkeypatch.setattr(module, Full)
    with pytest.raises(
        UserError, match=r"(?i)a\.array_record\b.*no space left on device"
    ) as caught:
        records.write(tmp_path / f"a{records.SUFFIX}", IMAGES)
    assert "\n" not in str(caught.value)


# Converting


def run(folder, out, *flags):
    convert.main([str(folder), f"--out={out}", f"--size={SIZE}", "--shard=4", *flags])


@pytest.fixture
def domain(tmp_path):
    return write_domain(tmp_path / "shop", CLASSES, each=5)


def test_converted_folder_holds_the_images_of_the_folder_of_photos(domain, tmp_path, capsys):
    run(domain, tmp_path / "out")
    assert "10" in numbers_in(capsys.readouterr().out, tmp_path / "out")
    found, listing = record_sets.find(str(tmp_path / "out")), folders.find(domain)
    decoded, *_ = folders.decode_all(listing, SIZE)
    np.testing.assert_array_equal(found.images, decoded)
    np.testing.assert_array_equal(found.labels, listing.labels)
    assert found.classes == listing.classes and found.files == listing.files
    assert found.name == "out" and found.images.shape[1] == SIZE
    assert len(list((tmp_path / "out").glob("*.array_record"))) == 3
    assert record_sets.find(str(domain)) is None


def test_killed_conversion_resumes_with_the_file_that_is_missing(domain, tmp_path, monkeypatch):
    read, seen = photos.read, []

    def read_or_stop(path, *arguments):
        seen.append(path)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return read(path, *arguments)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(photos, "read", read_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run(domain, out)
    with pytest.raises(UserError, match=r"\bout\b.*daaa convert"):
        record_sets.find(str(out))
    first = (out / f"images-00000{records.SUFFIX}").stat().st_mtime_ns
    run(domain, out)
    assert (out / f"images-00000{records.SUFFIX}").stat().st_mtime_ns == first
    decoded, *_ = folders.decode_all(folders.find(domain), SIZE)
    np.testing.assert_array_equal(record_sets.find(str(out)).images, decoded)


def test_unreadable_images_are_named_or_left_out(domain, tmp_path, capsys):
    (domain / "mug" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\b1\b.*--on_error") as caught:
        run(domain, tmp_path / "out")
    assert re.search(r"broken\.jpg\b.*not an image", str(caught.value))
    assert "000.jpg" not in str(caught.value)
    with pytest.raises(UserError, match="daaa convert"):
        record_sets.find(str(tmp_path / "out"))
    run(domain, tmp_path / "out", "--on_error=skip")
    assert {"10", "1"} <= set(numbers_in(capsys.readouterr().out, tmp_path / "out"))
    assert len(record_sets.find(str(tmp_path / "out")).labels) == 10


def test_set_without_an_image_is_refused(tmp_path):
    (tmp_path / "shop" / "mug").mkdir(parents=True)
    (tmp_path / "shop" / "mug" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\bshop\b.*not an image"):
        run(tmp_path / "shop", tmp_path / "out", "--on_error=skip")
    record_sets.write_index(tmp_path / "out", ["mug"], SIZE, {}, {})  # as an earlier version wrote
    with pytest.raises(UserError, match=r"\bout\b"):
        record_sets.find(str(tmp_path / "out"))


def test_classes_are_named_and_ordered_as_those_of_photos_are(domain, tmp_path):
    (domain / "pen").rename(domain / "e\u0301a")
    run(domain, tmp_path / "out")
    here = record_sets.find(str(tmp_path / "out"))
    assert here.classes == folders.find(domain).classes == ("mug", "\u00e9a")
    path = tmp_path / "out" / "index.json"  # as an earlier version wrote it
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"classes": ["e\u0301a", "mug"]}))
    earlier = record_sets.find(str(tmp_path / "out"))
    assert earlier.classes == here.classes
    np.testing.assert_array_equal(earlier.labels, 1 - here.labels)


def test_unrelated_index_beside_photos_is_ignored(domain):
    (domain / "index.json").write_text('{"pages": 3}')
    assert record_sets.find(str(domain)) is None
    assert folders.find(domain).classes == CLASSES


@pytest.mark.parametrize(
    "case", ["other size", "changed images", "other content", "not empty", "a file"]
)
def test_folder_that_holds_something_else_is_not_changed(case, domain, tmp_path):
    out, flags = tmp_path / "out", []
    if case == "a file":
        out.touch()
    elif case == "not empty":
        out.mkdir()
        (out / "thesis.txt").write_text("all of it")
    else:
        run(domain, out)
        if case == "other size":
            flags = ["--size=8"]
        elif case == "other content":
            (out / "begun.json").write_text("[]")
        else:
            write_image(domain / "mug" / "new.jpg", 0, 99)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out*/*")}
    with pytest.raises(UserError, match=f"--out={re.escape(str(out))}"):
        run(domain, out, *flags)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out*/*")} == before


@pytest.mark.parametrize("place", ["shop/a_records", "shop/pen/records", "linked/records", "shop"])
def test_output_within_the_folder_of_photos_is_refused(place, domain, tmp_path):
    """It would be a class there, by which resumed conversions would number the others."""
    (tmp_path / "linked").symlink_to(domain)
    before = sorted(domain.rglob("*"))
    with pytest.raises(UserError, match=f"--out={re.escape(str(tmp_path / place))} .*shop"):
        run(domain, tmp_path / place)
    assert sorted(domain.rglob("*")) == before


@pytest.mark.parametrize("name", ["a_class", "zebra"])
def test_conversion_is_not_resumed_with_other_classes(name, domain, tmp_path):
    """A class folder without an image is in no record, and yet changes the labels."""
    run(domain, tmp_path / "out")
    before = (tmp_path / "out" / "index.json").read_bytes()
    (domain / name).mkdir()
    (domain / name / "notes.csv").write_text("1,2")
    with pytest.raises(UserError, match="--out=.*classes"):
        run(domain, tmp_path / "out")
    assert (tmp_path / "out" / "index.json").read_bytes() == before


def test_conversion_of_an_earlier_version_is_resumed(domain, tmp_path):
    out = tmp_path / "out"
    run(domain, out)
    begun = json.loads((out / "begun.json").read_text())
    (out / "begun.json").write_text(json.dumps({k: begun[k] for k in ("images", "size", "shard")}))
    (out / "index.json").unlink()
    run(domain, out)
    assert record_sets.find(str(out)).classes == CLASSES


@pytest.mark.parametrize("where", ["folders.find", "folders.identity"])
def test_error_of_the_photos_does_not_name_the_output(where, domain, tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied", str(domain))

    monkeypatch.setattr(f"daaa_jax.data.{where}", fail)
    with pytest.raises(UserError) as caught:
        run(domain, tmp_path / "out")
    assert str(domain) in str(caught.value) and "--out" not in str(caught.value)


def test_error_of_the_output_names_it(domain, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "write_json", fail)
    with pytest.raises(UserError, match="--out=.*no space left"):
        run(domain, tmp_path / "out")


def test_second_conversion_to_a_folder_is_refused_and_leaves_its_files(
    domain, tmp_path, monkeypatch
):
    out, write = tmp_path / "out", records.write

    def write_twice(path, images):
        half = path.with_name(f".{path.name}.0.tmp")
        half.write_text("half of it")
        with pytest.raises(UserError, match=f"writing to {re.escape(str(out))}"):
            run(domain, out)
        half.unlink()
        return write(path, images)

    monkeypatch.setattr(records, "write", write_twice)
    run(domain, out)
    assert len(record_sets.find(str(out)).files) == 10


def test_dataset_check_reads_records_and_names_the_damaged_file(domain, tmp_path, capsys):
    out = tmp_path / "out"
    run(domain, out)
    capsys.readouterr()
    assert check.main([str(out)]) == 0
    assert numbers_in(capsys.readouterr().out.splitlines()[0], out) == ["10", "2"]
    records.write(out / f"images-00001{records.SUFFIX}", make_images(4, seed=9, size=SIZE))
    assert check.main([str(out)]) == 1
    assert re.findall(r"images-\d+\.array_record", capsys.readouterr().out) == [
        "images-00001.array_record"
    ]


def test_set_on_object_storage_is_fetched_once(domain, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    run(domain, tmp_path / "out")
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "out"), "/bucket/shop", recursive=True)
    found = record_sets.find("memory://bucket/shop")
    here = record_sets.find(str(tmp_path / "out"))
    np.testing.assert_array_equal(found.images, here.images)
    assert found.name == "shop" and found.images.sha256 == here.images.sha256
    store.rm("/bucket/shop/images-00000.array_record")
    np.testing.assert_array_equal(record_sets.find("memory://bucket/shop").images, here.images)
    with pytest.raises(UserError, match="memory://bucket/nothing"):
        record_sets.find("memory://bucket/nothing")
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("name", "content", "counts"),
    [
        ("index.json", "{}", set()),
        ("index.json", "{", set()),
        ("index.json", "[1]", set()),
        ("index.json", '{"format": "daaa_jax images 1", "size": 8, "classes": []}', set()),
        ("images-00001.json", "{}", set()),
        ("images-00001.json", "[1]", set()),
        ("images-00001.json", '{"files": [], "labels": 1}', set()),
        ("images-00001.json", None, set()),
        ("images-00001.array_record", None, {"0", "4"}),
        ("images-00001.array_record", "short", {"0", "4"}),
    ],
)
def test_damaged_set_is_one_line_that_names_the_file_and_image_counts(
    name, content, counts, domain, tmp_path
):
    out = tmp_path / "out"
    run(domain, out)
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_text(content)
    with pytest.raises(UserError) as caught:
        record_sets.find(str(out))
    assert counts <= set(numbers_in(str(caught.value), out / name))
    assert "\n" not in str(caught.value)


def test_lists_that_differ_from_the_index_are_refused(domain, tmp_path):
    run(domain, tmp_path / "out")
    path = tmp_path / "out" / "images-00000.json"
    content = json.loads(path.read_text())
    content["labels"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"\bout\b.*index\.json"):
        record_sets.find(str(tmp_path / "out"))
