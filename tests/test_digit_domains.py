"""USPS and SVHN are read from the files people have, and tasks between domains of digits."""

import bz2
import sys
import types

import numpy as np
import pytest
from digit_trees import COUNTS, load_error, usps_digits, write, write_svhn, write_usps

from configs import digits
from daaa_jax import main
from daaa_jax.data import load_task, svhn, usps
from daaa_jax.errors import UserError

OTHERS = {"train": 24, "test": 20}


@pytest.fixture
def root(tmp_path):
    """Small files of all data sets."""
    write(tmp_path)
    write_usps(tmp_path / "usps", OTHERS)
    write_svhn(tmp_path / "svhn", OTHERS)
    return tmp_path


def settings(task, root, **changes):
    data = digits.get_config(task).data
    data.update(dir=str(root), **changes)
    counts = COUNTS | {f"{n}_{s}": c for n in ("usps", "svhn") for s, c in OTHERS.items()}
    data.expected_counts.update(counts)
    return data


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("mnist2usps", ("mnist", "usps")),
        ("usps2mnist", ("usps", "mnist")),
        ("svhn2mnist", ("svhn", "mnist")),
    ],
)
def test_task_has_its_domains(task, names, root):
    found = load_task(settings(task, root))
    assert (found.source_name, found.target_name) == names
    counts = {"mnist": (40, 20)} | dict.fromkeys(("usps", "svhn"), (24, 20))
    assert [len(found.source_train.labels), len(found.evaluation.source_test.labels)] == [
        *counts[names[0]]
    ]
    assert [len(found.target_train.images), len(found.evaluation.target_test.labels)] == [
        *counts[names[1]]
    ]
    assert found.source_train.images.shape[1:] == (32, 32, 3)


def test_usps_is_enlarged_and_padded_like_mnist(root):
    images, labels = usps_digits(OTHERS["train"])
    found = usps.load(root / "usps", "train")
    np.testing.assert_array_equal(found.labels, labels)
    assert found.images.dtype == np.uint8 and not found.images[:, :2].any()
    np.testing.assert_allclose(found.images[:, 10, 2, 0], 255 * images[:, 5, 0], atol=1)
    np.testing.assert_allclose(found.images[:, 10, 29, 1], 255 * images[:, 5, 15], atol=1)


def test_values_that_libsvm_leaves_out_are_zero(root):
    path = root / "usps" / "usps.bz2"
    lines = bz2.decompress(path.read_bytes()).decode().splitlines()
    label, _, *others = lines[0].split()
    path.write_bytes(bz2.compress("\n".join([" ".join([label, *others]), *lines[1:]]).encode()))
    assert usps.load(root / "usps", "train").images[0, 2, 2, 0] == 128  # the middle of -1 to 1


def test_usps_in_hdf5_is_the_same(root, monkeypatch):
    h5py = pytest.importorskip("h5py")
    for split in OTHERS:
        images, labels = usps_digits(OTHERS[split])
        with h5py.File(root / "usps" / "usps.h5", "a") as file:
            part = file.create_group(split)
            part["data"], part["target"] = images.reshape(len(images), -1), labels
    found = usps.load(root / "usps", "test")
    with h5py.File(root / "usps" / "usps.h5", "a") as file:
        del file["train/target"]
        file["train/target"] = np.zeros(3)
    assert str(root / "usps" / "usps.h5") in load_error(settings("usps2mnist", root))
    (root / "usps" / "usps.h5").unlink()
    twin = usps.load(root / "usps", "test")
    np.testing.assert_array_equal(found.labels, twin.labels)
    assert np.abs(found.images.astype(int) - twin.images).max() <= 1


def test_hdf5_without_its_package_names_it(root, monkeypatch):
    (root / "usps" / "usps.h5").write_bytes(b"\x89HDF\r\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "h5py" in load_error(settings("usps2mnist", root))
    broken = types.SimpleNamespace(File=lambda path: {}["nothing"])
    monkeypatch.setitem(sys.modules, "h5py", broken)
    assert str(root / "usps" / "usps.h5") in load_error(settings("usps2mnist", root))


def test_svhn_counts_zero_as_ten(root):
    found = svhn.load(root / "svhn", "test")
    np.testing.assert_array_equal(found.labels, np.arange(20) % 10)
    np.testing.assert_array_equal(found.images[:, 3, 7, 1], np.arange(20) + 2 * 3 + 7)
    assert found.images.flags.c_contiguous


@pytest.mark.parametrize("name", ["usps/usps.t.bz2", "svhn/train_32x32.mat"])
def test_missing_or_damaged_files_are_named(name, root):
    path = root / name
    task = "usps2mnist" if "usps" in name else "svhn2mnist"
    content = path.read_bytes()
    for damage in (content[: len(content) // 2], b"<html>", None):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        assert name in load_error(settings(task, root))
        path.write_bytes(content)


def test_other_numbers_than_published_are_refused(root):
    data = settings("svhn2mnist", root)
    data.expected_counts.svhn_test = 26032
    assert "data.expected_counts.svhn_test" in load_error(data)


def test_missing_folder_is_named_with_its_setting(tmp_path):
    data = digits.get_config("usps2mnist").data
    message = load_error(data)
    assert "data.dir" in message and "usps/" in message and "mnist/" in message
    data.dir = str(tmp_path)
    assert "usps" in load_error(data)


def test_development_split_of_other_domains_needs_no_common_order(root):
    found = load_task(settings("svhn2mnist", root, development_size=5))
    assert len(found.evaluation.target_test.labels) == 5
    assert len(found.target_train.images) == 35 and len(found.source_train.labels) == 19
    with pytest.raises(UserError, match=r"data\.development_size=24"):
        load_task(settings("svhn2mnist", root, development_size=24))


def test_task_of_files_runs_through_every_stage(root, tmp_path):
    arguments = ["--config=configs/digits.py:usps2mnist,smoke", f"--config.data.dir={root}"]
    counts = COUNTS | {f"usps_{split}": count for split, count in OTHERS.items()}
    arguments += [f"--config.data.expected_counts.{n}={c}" for n, c in counts.items()]
    small = {"pair.epochs": 1, "source.epochs": 1, "adapt.rounds": 1, "evaluate.audit_images": 10}
    arguments += [f"--config.{name}={value}" for name, value in small.items()]
    main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "result.json").exists()
