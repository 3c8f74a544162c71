"""Photos, from two folders to predictions: run as a user runs it."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from photo_trees import OFFICE_CLASSES, write_domain, write_image, write_office
from PIL import Image

from configs import folder as folder_config
from daaa_jax import convert, predict
from daaa_jax.data import load_task, photos
from daaa_jax.errors import UserError

CLASSES = ("mug", "pen", "stapler")


def folder_flags(root: Path, workdir: Path, *more: str) -> list[str]:
    # The digit network, as it compiles in a tenth of the others' time.
    more = ("model.name=digits", *more)
    return [
        f"--config=configs/folder.py:smoke{''.join(f',{setting}' for setting in more)}",
        f"--config.data.source={root / 'catalogue'}",
        f"--config.data.target={root / 'phone'}",
        f"--workdir={workdir}",
    ]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAAA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A labelled folder, and a flat one without labels."""
    root = tmp_path_factory.mktemp("photos")
    write_domain(root / "catalogue", CLASSES, each=4)
    for number in range(9):
        write_image(root / "phone" / f"IMG_{number:04d}.jpg", number % 3, 50 + number, 80)
    return root


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "first"
    done = call("main", *folder_flags(root, workdir))
    assert done.returncode == 0, done.stderr
    assert "no labels" in done.stdout
    assert "pair: a step takes" in done.stdout
    return workdir


# From two folders to predictions


def test_target_without_labels_is_adapted_to_and_its_accuracy_is_not_made_up(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["task"] == "catalogue -> phone"
    assert set(result["accuracy"]["target_test"].values()) == {None}
    assert 0 <= result["accuracy"]["source_train"] <= 1 and "source_test" not in result["accuracy"]
    assert result["evaluated_on"] == "all target images"
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["stage"] == "adapt" and "information" in line]
    assert rounds and not any("target_test" in line for line in rounds)


def test_predictions_are_a_row_for_each_image_with_probabilities_or_the_reason(
    finished, root, tmp_path
):
    images = tmp_path / "new"
    shutil.copytree(root / "phone", images)
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (images / "IMG_0003.jpg").rename(images / f"{'写' * 80}.jpg")  # an overlay's name is longer
    done = call(
        "predict",
        f"--workdir={finished}",
        f"--out={tmp_path / 'out.csv'}",
        f"--overlays={tmp_path / 'overlays'}",
        "--batch_size=4",
        images,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == sorted(p.name for p in images.iterdir())
    for row in rows:
        if "broken" in row["file"]:
            assert row["error"] and not row["class"]
            continue
        probabilities = {name: float(row[f"p({name})"]) for name in CLASSES}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(probabilities, key=probabilities.get) and not row["error"]
    overlays = sorted((tmp_path / "overlays").iterdir())
    assert len(overlays) == 9
    assert np.asarray(Image.open(overlays[0])).shape == (224, 224, 3)


def test_table_written_to_a_pipe_leaves_a_pipe_and_to_a_link_a_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    seen: list[str] = []
    reader = threading.Thread(
        target=lambda: seen.append((tmp_path / "pipe").read_text()), daemon=True
    )
    reader.start()
    rows = [(Path("a.jpg"), np.array([0.25, 0.75]), "")]
    predict.write_csv(rows, ("mug", "pen"), str(tmp_path / "pipe"))
    reader.join(10)
    assert not reader.is_alive()
    here, there = os.pipe()  # as a shell names one, `--out=>(cat)`
    predict.write_csv(rows, ("mug", "pen"), f"/dev/fd/{there}")
    assert os.read(here, 1000).decode() == seen[0].replace("\n", "\r\n")
    assert "a.jpg,pen,0.250000,0.750000" in seen[0] and (tmp_path / "pipe").is_fifo()
    (tmp_path / "link.csv").symlink_to(tmp_path / "table.csv")
    predict.write_csv(rows, ("mug", "pen"), str(tmp_path / "link.csv"))
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "table.csv").read_text() == seen[0]


def test_batch_size_changes_no_prediction(finished, root, tmp_path):
    tables = []
    for size in (2, 64):
        out = tmp_path / f"{size}.csv"
        done = call(
            "predict", f"--workdir={finished}", f"--out={out}", f"--batch_size={size}",
            root / "phone",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with out.open(newline="") as file:
            tables.append(list(csv.reader(file))[1:])
    for ours, theirs in zip(*tables, strict=True):
        assert ours[:2] == theirs[:2]
        np.testing.assert_allclose(
            [float(p) for p in ours[2:-1]], [float(p) for p in theirs[2:-1]], atol=1e-5
        )


def test_predict_says_what_is_missing(finished, root, tmp_path):
    images = root / "phone"
    assert "adapt/selected.safetensors is missing" in refused(
        "predict", f"--workdir={tmp_path}", images
    )
    assert "is not the working directory of a run" in refused(
        "predict", f"--workdir={tmp_path}", images
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    command = "python -m daaa_jax.main --config=configs/folder.py"
    (begun / "config.json").write_text(json.dumps({"config": {}, "command": command}))
    assert f"stage adapt is not finished; this goes on: {command}, or" in refused(
        "predict", f"--workdir={begun}", images
    )
    (begun / "reused.json").write_text(json.dumps({"source": {"from": "runs/other"}}))
    assert "has its source network from runs/other" in refused(
        "predict", f"--workdir={begun}", "--network=source", images
    )
    (begun / "reused.json").unlink()
    for config, which, says in (
        ({"seeds": 2, "seed": 3}, "last", f"each seed has its own, give --workdir={begun}/seeds/3"),
        ({"source": {"checkpoint": "net.pth"}}, "source", "from source.checkpoint=net.pth"),
    ):
        (begun / "config.json").write_text(json.dumps({"config": config, "command": command}))
        assert says in refused("predict", f"--workdir={begun}", f"--network={which}", images)
    assert "no such file" in refused("predict", f"--workdir={finished}", root / "nothing")
    assert "name too long" in refused("predict", f"--workdir={finished}", "x" * 300)
    (tmp_path / "empty").mkdir()
    assert "no image in" in refused("predict", f"--workdir={finished}", tmp_path / "empty")
    assert "no layer matches 'conv99'" in refused(
        "predict", f"--workdir={finished}", "--overlay_layers=conv99",
        f"--overlays={tmp_path / 'o'}", f"--out={tmp_path / 'o.csv'}", images,
    )  # fmt: skip
    assert not (tmp_path / "o.csv").exists() and not list(tmp_path.glob("*.tmp"))
    broken = tmp_path / "run" / "adapt"
    broken.mkdir(parents=True)
    (broken / "selected.safetensors").write_bytes(b"12345678 not tensors")
    assert "not a sound safetensors file" in refused(
        "predict", f"--workdir={tmp_path / 'run'}", images
    )


# Export

LOAD = """
import sys
import numpy as np
from jax import export
program = export.deserialize(open(sys.argv[1], "rb").read())
np.save(sys.argv[3], program.call(np.load(sys.argv[2])))
"""

LOAD_ONNX = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
(found,) = session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])})
np.save(sys.argv[3], found)
"""


def test_exported_program_gives_the_same_probabilities_in_a_fresh_process(finished, tmp_path):
    from daaa_jax import inference

    out = tmp_path / "model"
    done = call("export", f"--workdir={finished}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert (out / "classes.txt").read_text().split() == list(CLASSES)
    card = (out / "README.md").read_text()
    assert "catalogue" in card and "no labels to measure with" in card and "## Limits" in card

    network = inference.load_network(finished, "selected")
    side = network.about["image_size"]
    for count in (1, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
        np.save(tmp_path / "images.npy", images)
        subprocess.run(
            [sys.executable, "-c", LOAD, out / "model.stablehlo", tmp_path / "images.npy",
             tmp_path / "found.npy"],
            check=True, env={**os.environ, "PYTHONPATH": ""}, cwd=tmp_path,
        )  # fmt: skip
        wanted = inference.posterior(network, network.variables, images)
        np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, atol=1e-4)


def test_exported_onnx_gives_the_same_probabilities(finished, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    from daaa_jax import inference

    network = inference.load_network(finished, "selected")
    out = tmp_path / "model"
    done = call("export", "--onnx", f"--workdir={finished}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    side = network.about["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    subprocess.run(
        [sys.executable, "-c", LOAD_ONNX, out / "model.onnx", tmp_path / "images.npy",
         tmp_path / "found.npy"],
        check=True, cwd=tmp_path,
    )  # fmt: skip
    wanted = inference.posterior(network, network.variables, images)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, atol=1e-4)


def test_export_overwrites_nothing(finished, tmp_path):
    (tmp_path / "mine").write_text("kept")
    assert "exists" in refused("export", f"--workdir={finished}", f"--out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# What a user brings


def test_finished_run_is_not_shown_for_other_images_of_the_same_names(finished, root, tmp_path):
    shutil.copytree(root, tmp_path / "moved")
    shutil.copytree(finished, tmp_path / "runs" / "first")
    marker = tmp_path / "runs/first/adapt/finished.json"
    content = json.loads(marker.read_text())
    content["settings"]["version"] = 0  # of an earlier version of the program
    marker.write_text(json.dumps(content))
    done = call("main", *folder_flags(tmp_path / "moved", tmp_path / "runs" / "first"))
    assert done.returncode == 0 and "is finished; other images need" in done.stdout, done.stderr
    assert "trained" not in done.stdout and "compiling" not in done.stdout
    config = json.loads((tmp_path / "runs/first/config.json").read_text())["config"]
    assert config["data"]["source"] == str(tmp_path / "moved" / "catalogue")
    shutil.copytree(root, tmp_path / "other")
    write_image(tmp_path / "other" / "phone" / "IMG_0000.jpg", 1, 999, 80)
    line = refused("main", *folder_flags(tmp_path / "other", tmp_path / "runs" / "first"))
    assert "is finished, with other images or files: images.phone" in line
    assert "there is no such folder" in refused(
        "main", *folder_flags(tmp_path / "nowhere", tmp_path / "runs" / "first")
    )


def test_stages_of_a_sibling_are_reused_and_none_switches_it_off(finished, root):
    workdir = finished.parent / "second"
    done = call("main", *folder_flags(root, workdir, "adapt.beta=0.0"))
    assert done.returncode == 0, done.stderr
    assert f"pair: taken from another run, in {finished / 'pair'}" in done.stdout
    folders = {path.name for path in workdir.iterdir() if path.is_dir()}
    # Of the sibling's CycleGAN the generators alone, which paired inference needs.
    assert folders == {"adapt", "pair", "report", "tensorboard"}

    alone = finished.parent / "alone"
    flags = folder_flags(root, alone, "run.reuse=none")
    done = call("main", *flags, "--stage=source")
    assert done.returncode == 0 and "taken from another" not in done.stdout
    ours, theirs = (
        json.loads((place / "source" / "finished.json").read_text())["extra"]["sha256"]
        for place in (alone, finished)
    )
    assert ours == theirs


def test_source_network_and_translations_from_elsewhere_take_the_place_of_stages(
    finished, root, tmp_path
):
    made = tmp_path / "made"
    for source, target in (("catalogue", "phone"), ("phone", "catalogue")):
        for path in (root / source).rglob("*.jpg"):
            place = made / f"{source}_to_{target}" / path.relative_to(root / source)
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).save(place.with_suffix(".png"))
    flags = [
        *folder_flags(root, tmp_path / "run", "run.reuse=none"),
        f"--config.source.checkpoint={finished}",
        f"--config.pair.translations={made}",
    ]
    refusal = refused("main", *flags, "--stage=pair")
    assert "--stage=pair has nothing to do: pair.translations has no generators" in refusal
    assert "source.checkpoint takes its place" in refused("main", *flags, "--stage=source")
    done = call("main", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["seconds"]) == {"adapt"}
    first = json.loads((finished / "result.json").read_text())
    assert result["accuracy"]["source_train"] == first["accuracy"]["source_train"]


@pytest.mark.parametrize("remove", [True, False])
def test_incomplete_or_damaged_translations_are_refused_first(finished, root, tmp_path, remove):
    made = tmp_path / "made"
    shutil.copytree(root / "catalogue", made / "catalogue_to_phone")
    shutil.copytree(root / "phone", made / "phone_to_catalogue")
    victim = made / "catalogue_to_phone" / "pen" / "002.jpg"
    victim.unlink() if remove else victim.write_bytes(b"\xff\xd8\xff")
    message = refused(
        "main", *folder_flags(root, tmp_path / "run"), f"--config.pair.translations={made}"
    )
    assert "002.jpg" in message
    assert ("1 of 12 images have no translation" if remove else "cannot be read") in message
    assert not (tmp_path / "run").exists()


def test_source_network_of_other_classes_is_refused(finished, tmp_path):
    write_domain(tmp_path / "catalogue", ("mug", "pen", "ruler"), each=3)
    write_domain(tmp_path / "phone", ("mug", "pen", "ruler"), each=3)
    message = refused(
        "main",
        *folder_flags(tmp_path, tmp_path / "run"),
        f"--config.source.checkpoint={finished}",
    )
    assert "stapler" in message and "ruler" in message
    assert not (tmp_path / "run").exists()


def test_translations_of_images_that_are_no_files_are_refused(tmp_path):
    message = refused(
        "main",
        "--config=configs/digits.py:smoke",
        f"--config.pair.translations={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert "no files of their own" in message


# Office-31


@pytest.mark.slow
def test_all_six_tasks_of_office_pass_through_every_stage(tmp_path):
    """The real number of classes; three CycleGANs and three source networks serve six tasks."""
    root = write_office(tmp_path / "office")
    finished = {"pair": 0, "source": 0}
    for task in ("a2w", "w2a", "a2d", "d2a", "d2w", "w2d"):
        done = call(
            "main",
            f"--config=configs/office.py:{task},smoke,data.limit=0",
            f"--config.data.dir={root}",
            *(f"--config.data.expected_counts.{name}=62" for name in ("amazon", "dslr", "webcam")),
            f"--workdir={tmp_path / 'runs' / task}",
        )
        assert done.returncode == 0, done.stderr
        for stage in finished:
            finished[stage] += f"{stage}: taken from another run" in done.stdout
        result = json.loads((tmp_path / "runs" / task / "result.json").read_text())
        assert set(result["per_class"]) == set(OFFICE_CLASSES)
        assert 0 <= result["accuracy"]["target_test"]["last"] <= 1
    assert finished == {"pair": 3, "source": 3}


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("", "phone", "data.source is not set"),
        ("catalogue", "", "data.target is not set"),
        ("catalogue", "other/catalogue", "have the same name"),
        ("catalogue", "catalogue", "are the same folder"),
        ("phone", "catalogue", "has no classes"),
        ("other", "phone", "has one class, catalogue, where there must be two: if classes are"),
        ("catalogue", "nowhere", "there is no such folder"),
    ],
)
def test_folders_that_make_no_task_are_refused_and_leave_nothing(
    source, target, says, root, tmp_path
):
    shutil.copytree(root, tmp_path / "photos")
    shutil.copytree(root / "catalogue", tmp_path / "photos" / "other" / "catalogue")
    place = {name: tmp_path / "photos" / name if name else "" for name in (source, target)}
    assert says in refused(
        "main",
        "--config=configs/folder.py:smoke",
        f"--config.data.source={place[source]}",
        f"--config.data.target={place[target]}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert not (tmp_path / "run").exists()


def test_only_some_images_are_decoded_where_only_some_are_wanted(tmp_path, monkeypatch):
    source = write_domain(tmp_path / "catalogue", CLASSES, each=4)
    target = write_domain(tmp_path / "phone", CLASSES, each=3, seed=1)
    decoded = []
    read = photos.read
    monkeypatch.setattr(photos, "read", lambda path, size: decoded.append(path) or read(path, size))
    config = folder_config.get_config("smoke,data.limit=5")
    config.data.update(source=str(source), target=str(target))
    task = load_task(config.data)
    assert len(task.source_train.images) == len(task.target_train.images) == 5
    assert len(decoded) == 10 and task.left_out == {"catalogue": 0, "phone": 0}
    for image, label, file in zip(
        *vars(task.source_train).values(), task.source_files, strict=True
    ):
        np.testing.assert_array_equal(image, read(source / file, config.data.image_size))
        assert CLASSES[label] == file.parts[0]


def test_class_that_is_left_out_whole_is_refused(tmp_path):
    source = write_domain(tmp_path / "catalogue", CLASSES, each=2)
    for path in (source / "pen").iterdir():
        path.write_bytes(b"no image")
    config = folder_config.get_config("smoke,data.on_error=skip,data.limit=0")
    config.data.update(source=str(source), target=str(write_domain(tmp_path / "t", CLASSES, 1)))
    with pytest.raises(UserError, match="no readable image in pen"):
        load_task(config.data)


def test_records_stand_where_folders_of_photos_do(tmp_path):
    source = write_domain(tmp_path / "catalogue", CLASSES, each=3)
    target = write_domain(tmp_path / "phone", CLASSES, each=2, seed=1)
    tasks = []
    for name in ("photos", "records"):
        config = folder_config.get_config("smoke,data.limit=5")
        config.data.update(source=str(source), target=str(target))
        if name == "records":
            convert.convert(source, tmp_path / "r/catalogue", config.data.image_size, 4, "raise")
            config.data.source = str(tmp_path / "r/catalogue")
        tasks.append(load_task(config.data))
    ours, theirs = tasks
    np.testing.assert_array_equal(ours.source_train.images, theirs.source_train.images)
    np.testing.assert_array_equal(ours.source_train.labels, theirs.source_train.labels)
    assert ours.source_files == theirs.source_files and ours.class_names == theirs.class_names
    config.data.image_size = 24
    with pytest.raises(UserError, match="holds images of 40 pixels, and data.image_size is 24"):
        load_task(config.data)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "Office-31 is to be had from"),
        (["--config.data.dir={root}"], "holds 6 images, expected 795"),
        (["--config.data.dir={root}", "--config.data.expected_counts.webcam=6"], "expected 31"),
        (["--config.data.dir={root}/amazon"], "holds no folder webcam"),
    ],
)
def test_office_that_is_not_as_expected_says_so_and_leaves_nothing(flags, says, tmp_path):
    root = write_office(tmp_path / "office", CLASSES)
    flags = [flag.format(root=root) for flag in flags]
    workdir = f"--workdir={tmp_path / 'run'}"
    assert says in refused("main", "--config=configs/office.py:w2a,smoke", workdir, *flags)
    assert not (tmp_path / "run").exists()


def test_tfds_builder_is_prepared_and_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    from daaa_jax.data.tfds_office import CLASSES as OFFICE_31
    from daaa_jax.data.tfds_office import Office31

    root = write_office(tmp_path / "office", OFFICE_31, each=1)
    builder = Office31(data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(root)))
    assert "tensorflow" not in sys.modules
    rows = builder.as_data_source(split="webcam")
    assert len(rows) == 31
    for row in rows:
        name = row["file"].decode()
        assert OFFICE_31[row["label"]] == Path(name).parent.name
        np.testing.assert_array_equal(row["image"], Image.open(root / "webcam" / name))
