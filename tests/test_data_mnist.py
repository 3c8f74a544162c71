"""The data of MNIST to MNIST-M: idx files, a folder or archive, the recipe, and their errors."""

import io
import os
import re
import sys
import zlib
from pathlib import Path

import digit_trees
import numpy as np
import pytest
import tensorflow_datasets as tfds
from digit_trees import COUNTS, archive, load_error, settings, write_idx
from PIL import Image

from configs import digits
from daaa_jax.data import load_task, mnist, mnist_m
from daaa_jax.data.tfds_builders import MnistM
from daaa_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    return digit_trees.write(tmp_path / "data")


def numbers_in(message: str, path: Path) -> set[str]:
    """The numbers that a message contains beside the path of the file that it must name."""
    assert str(path) in message
    return set(re.findall(r"\d+", message.replace(str(path), "")))


def test_both_domains_are_read_and_their_rows_are_in_different_orders(root):
    task = load_task(settings(root))
    source, target = task.source_train, task.evaluation.target_train
    assert source.images.shape == (40, 32, 32, 3) and target.images.shape == (30, 32, 32, 3)
    # Image i was filled with i, which identifies it.
    np.testing.assert_array_equal(source.images[:, 16, 16, 0] % 10, source.labels)
    np.testing.assert_array_equal(target.images[:, 16, 16, 0] % 10, target.labels)
    assert (source.images[:30, 16, 16, 0] != target.images[:, 16, 16, 0]).mean() > 0.8
    np.testing.assert_array_equal(task.target_train.images, target.images)


def test_mnist_is_padded_with_zeros_to_32(root):
    images = mnist.load(root / "mnist", "train").images
    assert images[7, 2:30, 2:30].min() == images[7].max() == 7
    assert images[:, :2].max() == images[:, :, 30:].max() == 0


def test_archive_gives_what_its_folder_gives_and_is_decoded_once(root):
    folder = mnist_m.load(root / "mnist_m")
    path = archive(root)
    first = mnist_m.load(root / "mnist_m")
    stamp = path.stat()
    path.write_bytes(b"\0" * stamp.st_size)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    cached = mnist_m.load(root / "mnist_m")
    for split in ("train", "test"):
        np.testing.assert_array_equal(first[split].images, folder[split].images)
        np.testing.assert_array_equal(cached[split].labels, folder[split].labels)


def test_development_split_holds_out_the_same_digits_of_both_domains(root):
    task = load_task(settings(root, development_size=10))
    values = {
        name: set(data.images[:, 16, 16, 0].tolist())
        for name, data in (
            ("source_train", task.source_train),
            ("target_train", task.target_train),
            ("source", task.evaluation.source_test),
            ("target", task.evaluation.target_test),
        )
    }
    assert values["source"] == values["target"] == set(range(20, 30))
    assert not values["source"] & (values["source_train"] | values["target_train"])


def test_mnist_m_is_made_of_mnist_and_photos_if_their_folder_is_given(root, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.full((40, 50), 200 * 257, np.uint16)  # 16 bits are read as those of other photos
    Image.fromarray(pixels).save(folder / "one.png")
    task = load_task(settings(root, photos_dir=str(folder)))
    target = task.evaluation.target_train
    assert len(target.labels) == 40
    # As in the published images, any ink gives the full negative; digit 0 here has none.
    assert sorted(target.images[:, 16, 16, 0]) == [55] * 39 + [200]
    assert (target.images[:, 0, 0] == 200).all()


def test_photos_for_mnist_m_that_cannot_be_used_are_named(root, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    assert f"data.photos_dir={folder}" in load_error(settings(root, photos_dir=str(folder)))
    Image.new("RGB", (31, 40)).save(folder / "small.png")
    assert "small.png is smaller" in load_error(settings(root, photos_dir=str(folder)))
    Image.new("RGB", (32, 40)).save(folder / "small.png")
    (folder / "lost.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"(?s)1 photo cannot be read.*lost\.jpg: "):
        load_task(settings(root, photos_dir=str(folder)))


def test_tilde_in_a_folder_is_the_home_directory(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    assert len(load_task(settings(Path("~"))).source_train.labels) == 40


def test_missing_directory_setting_is_named():
    assert "data.dir" in load_error(digits.get_config("mnist2mnistm").data)


def test_missing_idx_file_is_named(root):
    path = root / "mnist" / "t10k-images-idx3-ubyte"
    path.unlink()
    assert str(path) in load_error(settings(root))


def test_missing_mnist_m_names_its_folder_its_files_and_the_setting_that_replaces_it(root):
    archive(root).unlink()
    message = load_error(settings(root))
    for name in ("mnist_m_train_labels.txt", "mnist_m.tar.gz", "data.photos_dir"):
        assert name in message
    assert str(root / "mnist_m") in message


@pytest.mark.parametrize("name", ["mnist_train", "mnist_m_test"])
def test_wrong_count_names_the_setting_that_accepts_it(root, name):
    data = settings(root)
    data.expected_counts[name] += 1
    message = load_error(data)
    assert {str(COUNTS[name]), str(COUNTS[name] + 1)} <= set(re.findall(r"\d+", message))
    assert f"data.expected_counts.{name}" in message
    data.expected_counts[name] = 0
    load_task(data)


def test_bad_idx_header_shows_what_was_found(root):
    path = root / "mnist" / "t10k-images-idx3-ubyte"
    path.write_bytes(b"\x89PNG" + path.read_bytes()[4:])
    message = load_error(settings(root))
    assert str(path) in message and "89504e47" in message and "00000803" in message


def test_truncated_idx_file_is_refused(root):
    path = root / "mnist" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    assert str(20 * 28 * 28 - 5) in numbers_in(load_error(settings(root)), path)


def test_broken_gzip_file_is_refused(root):
    path = root / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:50])
    assert str(path) in load_error(settings(root))


def test_unreadable_png_is_named(root):
    path = root / "mnist_m" / "mnist_m_test" / "00000003.png"
    path.write_bytes(path.read_bytes()[:60])
    assert str(path) in load_error(settings(root))


def test_unreadable_png_in_the_archive_is_named(root):
    path = root / "mnist_m" / "mnist_m_test" / "00000003.png"
    path.write_bytes(b"no image")
    packed = archive(root)
    message = load_error(settings(root))
    assert str(packed) in message and "mnist_m_test/00000003.png" in message


def test_png_of_another_size_is_refused(root):
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28)).save(buffer, "png")
    path = root / "mnist_m" / "mnist_m_train" / "00000000.png"
    path.write_bytes(buffer.getvalue())
    message = load_error(settings(root))
    assert str(path) in message and "28x28" in message and "32x32" in message


def test_truncated_archive_is_refused(root):
    path = archive(root)
    path.write_bytes(path.read_bytes()[:-200])
    assert str(path) in load_error(settings(root))


def test_label_outside_the_digits_is_refused(root):
    labels = root / "mnist_m" / "mnist_m_train_labels.txt"
    labels.write_text(labels.read_text().replace("00000004.png 4", "00000004.png 14"))
    assert {"14", "4"} <= numbers_in(load_error(settings(root)), labels)
    labels = root / "mnist" / "t10k-labels-idx1-ubyte"
    write_idx(labels, np.where(np.arange(20) == 17, 12, 3))
    assert {"12", "17"} <= numbers_in(load_error(settings(root)), labels)


def test_image_that_the_labels_list_and_the_folder_lacks_is_named(root):
    (root / "mnist_m" / "mnist_m_test" / "00000009.png").unlink()
    message = load_error(settings(root))
    assert "00000009.png" in message
    assert {"1", "10"} <= numbers_in(message, root / "mnist_m" / "mnist_m_test_labels.txt")


def test_malformed_line_of_labels_is_shown(root):
    labels = root / "mnist_m" / "mnist_m_test_labels.txt"
    labels.write_text("00000000.png\n" + labels.read_text())
    message = load_error(settings(root))
    assert str(labels) in message and "line 1" in message and "'00000000.png'" in message


@pytest.mark.parametrize("label", ["99999999999", "\u00b2", "four"])
def test_label_that_is_not_a_number_is_shown(root, label):
    labels = root / "mnist_m" / "mnist_m_test_labels.txt"
    labels.write_text(labels.read_text().replace("00000004.png 4", f"00000004.png {label}"))
    message = load_error(settings(root))
    assert str(labels) in message and "line 5" in message and f"00000004.png {label}" in message


def test_png_that_is_a_folder_is_named(root):
    path = root / "mnist_m" / "mnist_m_test" / "00000003.png"
    path.unlink()
    path.mkdir()
    message = load_error(settings(root))
    assert path.name in message and path.parent.name in message


def test_png_that_claims_a_huge_size_is_refused(root):
    path = root / "mnist_m" / "mnist_m_test" / "00000003.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    assert str(path) in load_error(settings(root))


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_files_beside_the_images_are_ignored(root, packed):
    (root / "mnist_m" / "mnist_m_test" / "._00000000.png").write_bytes(b"resource fork")
    if packed:
        archive(root)
    assert len(load_task(settings(root)).evaluation.target_test.labels) == 10


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:200]])
def test_damaged_cache_is_ignored_and_replaced(root, tmp_path, damage):
    archive(root)
    first = mnist_m.load(root / "mnist_m")["train"].images.copy()
    (cached,) = (tmp_path / "cache").glob("*/train_images.npy")
    content = cached.read_bytes()
    cached.write_bytes(damage(content))
    np.testing.assert_array_equal(mnist_m.load(root / "mnist_m")["train"].images, first)
    assert len(cached.read_bytes()) == len(content)


def test_development_split_is_refused_if_rows_do_not_pair(root):
    # As in a TFDS copy, which is shuffled.
    for kind in ("images", "labels"):
        path = root / "mnist" / f"train-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"
        write_idx(path, mnist.read_idx(path, 3 if kind == "images" else 1)[::-1])
    message = load_error(settings(root, development_size=10))
    assert "data.development_size=10" in message and "data.tfds_dir" in message


def test_tfds_copy_and_photos_together_need_no_folder(root, tmp_path):
    Mnist(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    changes = {"tfds_dir": str(tmp_path / "tfds"), "photos_dir": str(tmp_path)}
    data = settings(root, **changes)
    data.dir = ""
    task = load_task(data)
    assert len(task.source_train.labels) == len(task.target_train.images) == 40


def test_tfds_builder_is_prepared_and_read_without_tensorflow(root, tmp_path):
    builder = MnistM(data_dir=tmp_path / "tfds", file_format="array_record")
    manual = tfds.download.DownloadConfig(manual_dir=root / "mnist_m")
    builder.download_and_prepare(download_config=manual)
    rows = builder.as_data_source(split="train")
    assert len(rows) == 30
    assert sorted(int(row["image"][0, 0, 0]) for row in rows) == list(range(30))
    assert all(row["label"] == row["image"][0, 0, 0] % 10 for row in rows)
    assert "tensorflow" not in sys.modules


class Mnist(tfds.core.GeneratorBasedBuilder):
    """A stand-in with the name and the features of TFDS's own `mnist`."""

    VERSION = tfds.core.Version("3.0.1")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(28, 28, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "test": self._generate_examples(20)}

    def _generate_examples(self, count):
        for i in range(count):
            png = io.BytesIO()  # TFDS would encode an array with TensorFlow
            Image.fromarray(np.full((28, 28), i, np.uint8)).save(png, "png")
            png.seek(0)
            yield i, {"image": png, "label": i % 10}


def test_mnist_of_a_prepared_tfds_copy_is_what_the_idx_files_hold(root, tmp_path):
    Mnist(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    tfds_copy = mnist.load_tfds(tmp_path / "tfds", "test")
    idx = mnist.load(root / "mnist", "test")
    order = np.argsort(tfds_copy.images[:, 16, 16, 0])
    np.testing.assert_array_equal(tfds_copy.images[order], idx.images)
    np.testing.assert_array_equal(tfds_copy.labels[order], idx.labels)
    task = load_task(settings(root, tfds_dir=str(tmp_path / "tfds")))
    assert len(task.source_train.labels) == 40


def test_tfds_copy_that_needs_tensorflow_names_both_file_formats(root, tmp_path):
    Mnist(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    info = tmp_path / "tfds" / "mnist" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = load_error(settings(root, tfds_dir=str(tmp_path / "tfds")))
    assert str(info.parent) in message and "tfrecord" in message and "array_record" in message


def test_missing_tfds_copy_names_the_folder_and_the_call_that_prepares_one(root, tmp_path):
    message = load_error(settings(root, tfds_dir=str(tmp_path / "none")))
    assert str(tmp_path / "none") in message and "download_and_prepare" in message


@pytest.mark.slow
def test_real_files_have_the_published_counts_and_the_same_digits(data_dir):
    data = digits.get_config("mnist2mnistm").data
    data.dir = str(data_dir)
    task = load_task(data)
    assert (
        len(task.source_train.labels) == 60000 and len(task.evaluation.source_test.labels) == 10000
    )
    assert (
        len(task.target_train.images) == 59001 and len(task.evaluation.target_test.labels) == 9001
    )
    # MNIST-M keeps the order of MNIST, but for the thousand that it lacks.
    source = mnist.load(data_dir / "mnist", "train")
    target = mnist_m.load(data_dir / "mnist_m")["train"]
    np.testing.assert_array_equal(source.labels[:59001], target.labels)
