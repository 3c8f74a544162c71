"""Photos, from two folders to predictions: run as a user runs it."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import call, refused
from photo_trees import OFFICE_CLASSES, write_domain, write_image, write_office
from PIL import Image

from configs import folder as folder_config
from daaa_jax import convert, evaluation, models, predict
from daaa_jax.data import load_task, photos
from daaa_jax.data.augment import decode, evaluation_views
from daaa_jax.errors import UserError
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import network_file

CLASSES = ("mug", "pen", "stapler")


def folder_flags(root: Path, workdir: Path, *more: str) -> list[str]:
    # The digit network, which compiles in a tenth of the others' time.
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
    assert "(last)" in done.stdout and not re.search(r"%\s+\((last|selected|oracle)", done.stdout)
    assert re.search(r"^pair: .*\bMiB\b", done.stdout, re.MULTILINE)
    return workdir


# From two folders to predictions


def test_target_without_labels_has_no_accuracy(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["task"] == "catalogue -> phone"
    assert set(result["accuracy"]["target_test"].values()) == {None}
    assert 0 <= result["accuracy"]["source_train"] <= 1 and "source_test" not in result["accuracy"]
    assert result["evaluated_on"] == "target images"
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["stage"] == "adapt" and "information" in line]
    assert rounds and not any("target_test" in line for line in rounds)


def test_predictions_are_a_row_for_each_image_with_probabilities_or_the_reason(
    finished, root, tmp_path
):
    images = tmp_path / "new"
    shutil.copytree(root / "phone", images)
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (images / "notes.txt").write_text("taken on Monday")
    (images / "lost.jpg").symlink_to(tmp_path / "nowhere")
    (images / "Thumbs.db").write_bytes(b"")
    (images / "IMG_0003.jpg").rename(images / f"{'写' * 80}.jpg")  # overlays have longer names
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
    names = {path.name for path in images.iterdir()} - {"Thumbs.db"}
    assert [Path(row["file"]).name for row in rows] == sorted(names)
    for row in rows:
        if Path(row["file"]).name in ("broken.jpg", "notes.txt", "lost.jpg"):
            assert row["error"] and not row["class"]
            continue
        probabilities = {name: float(row[f"p({name})"]) for name in CLASSES}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(probabilities, key=probabilities.get) and not row["error"]
    overlays = sorted((tmp_path / "overlays").iterdir())
    assert len(overlays) == 9 and re.match(r"000000_\w+_", overlays[0].name)
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


def test_values_become_pixels_as_in_the_images_of_the_run(finished, tmp_path):
    from daaa_jax import inference
    from daaa_jax.report import model_card

    network = inference.load_network(Workdir(finished), "selected")
    ramp = np.tile(np.linspace(0, 1, 40), (40, 1))
    for name, values in (
        ("12_bits.png", (ramp * 255).astype(np.uint16) * 4),
        ("8_bits.png", ((ramp * 255).astype(np.uint16) * 4 / 4095 * 255).astype(np.uint8)),
    ):
        Image.fromarray(values).save(tmp_path / name)
    paths = [tmp_path / "12_bits.png", tmp_path / "8_bits.png"]

    def predicted(ranges):
        about = network.about | {"ranges": ranges}
        known = dataclasses.replace(network, about=about)
        return [p for _, p, _ in inference.predict(known, paths, batch_size=2)]

    of_run, of_8_bits = predicted({"unsigned": [0, 4095]})
    np.testing.assert_array_equal(of_run, of_8_bits)
    of_itself, _ = predicted({})
    assert np.abs(of_itself - of_run).max() > 1e-4
    about = network.about | {"ranges": {"unsigned": [0, 4095]}}
    known = dataclasses.replace(network, about=about)
    assert "4095 (255)" in model_card.write(known, Workdir(finished), "selected")


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


def test_predict_names_what_is_missing(finished, root, tmp_path):
    images, network = root / "phone", tmp_path / "adapt" / "selected.safetensors"
    line = refused("predict", f"--workdir={tmp_path}", images)
    assert str(network) in line and str(tmp_path) in line.replace(str(network), "")
    started = tmp_path / "started"
    started.mkdir()
    command = "python -m daaa_jax.main --config=configs/folder.py"
    (started / "config.json").write_text(json.dumps({"config": {}, "command": command}))
    line = refused("predict", f"--workdir={started}", images)
    assert str(started / "adapt" / "selected.safetensors") in line
    assert command in line and "--network" in line
    (started / "reused.json").write_text(json.dumps({"source": {"from": "runs/other"}}))
    line = refused("predict", f"--workdir={started}", "--network=source", images)
    assert "--workdir=runs/other" in line
    (started / "reused.json").unlink()
    for config, which, name in (
        ({"seeds": 2, "seed": 3}, "last", f"--workdir={started}/seeds/3"),
        ({"source": {"checkpoint": "net.pth"}}, "source", "source.checkpoint=net.pth"),
    ):
        (started / "config.json").write_text(json.dumps({"config": config, "command": command}))
        assert name in refused("predict", f"--workdir={started}", f"--network={which}", images)
    (tmp_path / "empty").mkdir()
    for place in (root / "nothing", "x" * 300, tmp_path / "empty"):
        assert str(place) in refused("predict", f"--workdir={finished}", place)
    line = refused(
        "predict", f"--workdir={finished}", "--overlay_layers=conv99",
        f"--overlays={tmp_path / 'o'}", f"--out={tmp_path / 'o.csv'}", images,
    )  # fmt: skip
    assert "--overlay_layers" in line and "conv99" in line and "conv1, conv2, conv3" in line
    assert not (tmp_path / "o.csv").exists() and not list(tmp_path.glob("*.tmp"))
    broken = tmp_path / "run" / "adapt" / "selected.safetensors"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"12345678 not tensors")
    assert str(broken) in refused("predict", f"--workdir={tmp_path / 'run'}", images)


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
    preprocessing = json.loads((out / "preprocessing.json").read_text())
    assert preprocessing == {"image_size": 40, "ranges": {}}
    card = (out / "README.md").read_text()
    assert "catalogue" in card and "phone" in card and all(name in card for name in CLASSES)
    # The accuracy of the source network on its own domain, and none on the unlabelled target.
    result = json.loads((finished / "result.json").read_text())
    shown = re.findall(r"[\d.]+%", card)
    assert shown == [f"{100 * result['accuracy']['source_train']:.1f}%"]

    network = inference.load_network(Workdir(finished), "selected")
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

    network = inference.load_network(Workdir(finished), "selected")
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
    assert f"--out={tmp_path}" in refused("export", f"--workdir={finished}", f"--out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# External files


def test_result_is_not_shown_for_other_images_with_the_same_names(finished, root, tmp_path):
    def times():
        files = (path for path in workdir.rglob("*") if path.is_file())
        return {str(path.relative_to(workdir)): path.stat().st_mtime_ns for path in files}

    workdir = tmp_path / "runs" / "first"
    shutil.copytree(root, tmp_path / "moved")
    shutil.copytree(finished, workdir)
    marker = workdir / "adapt" / "finished.json"
    content = json.loads(marker.read_text())
    content["settings"]["version"] = 0  # of an earlier version of the program
    content["fingerprint"] = "earlier"
    marker.write_text(json.dumps(content))
    before = times()
    done = call("main", *folder_flags(tmp_path / "moved", workdir))
    assert done.returncode == 0, done.stderr
    assert str(workdir) in done.stdout and "--workdir" in done.stdout
    # Nothing is trained: the run only records where its images are now.
    assert {name for name, time in times().items() if time != before.get(name)} == {"config.json"}
    config = json.loads((workdir / "config.json").read_text())["config"]
    assert config["data"]["source"] == str(tmp_path / "moved" / "catalogue")
    shutil.rmtree(tmp_path / "moved")  # a result needs no data to be shown
    assert call("main", *folder_flags(tmp_path / "moved", workdir)).stdout == done.stdout
    shutil.copytree(root, tmp_path / "other")
    write_image(tmp_path / "other" / "phone" / "IMG_0000.jpg", 1, 999, 80)
    line = refused("main", *folder_flags(tmp_path / "other", workdir))
    assert "images.phone" in line and str(workdir) in line and "--workdir" in line
    nowhere = tmp_path / "nowhere"
    assert str(nowhere / "catalogue") in refused("main", *folder_flags(nowhere, workdir))


def test_stages_of_a_sibling_are_reused_unless_run_reuse_is_none(finished, root):
    workdir = finished.parent / "second"
    done = call("main", *folder_flags(root, workdir, "adapt.beta=0.0"))
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^pair: .*{re.escape(str(finished / 'pair'))}$", done.stdout, re.MULTILINE)
    folders = {path.name for path in workdir.iterdir() if path.is_dir()}
    # Of the sibling's CycleGAN only the generators, which paired inference needs.
    assert folders == {"adapt", "pair", "report", "tensorboard"}

    alone = finished.parent / "alone"
    flags = folder_flags(root, alone, "run.reuse=none")
    done = call("main", *flags, "--stage=source")
    assert done.returncode == 0 and not (alone / "reused.json").exists()
    ours, theirs = (
        json.loads((place / "source" / "finished.json").read_text())["extra"]["sha256"]
        for place in (alone, finished)
    )
    assert ours == theirs


def test_external_source_network_and_translations_replace_stages(finished, root, tmp_path):
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
    for stage, setting in (("pair", "pair.translations"), ("source", "source.checkpoint")):
        line = refused("main", *flags, f"--stage={stage}")
        assert f"--stage={stage}" in line and setting in line
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
    assert str(made / "catalogue_to_phone") in message and "pen/002.jpg" in message
    assert set(re.findall(r"\w+/\w+\.jpg", message)) == {"pen/002.jpg"}
    assert re.search(r"\b1\D+12\b" if remove else r"\b1\b", message)
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


@pytest.fixture(scope="module")
def exact(root) -> tuple[dict, dict]:
    """Variables of a source network that is right on all its images, and its metadata."""
    config = folder_config.get_config("smoke,model.name=digits,data.limit=0")
    config.data.update(source=str(root / "catalogue"), target=str(root / "phone"))
    known = load_task(config.data).source_train
    network = models.create_classifier(config.model, 3, config.adapt.attention)
    view = evaluation_views(decode(known.images[:1]), config.augment, 1)[0]
    variables = jax.device_get(models.initial_variables(jax.random.key(0), network, view))
    given = evaluation.outputs(network, variables, known.images[:], config.augment, 1)
    weights = np.linalg.lstsq(given.features, 9 * np.eye(3)[known.labels], rcond=None)[0]
    layer = variables["params"]["classifier"]
    layer["kernel"] = weights.reshape(layer["kernel"].shape).astype(np.float32)
    return variables, {"classes": CLASSES, "model": config.model}


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [1, 0, 2]])
@pytest.mark.parametrize("is_ours", [True, False])
def test_source_network_with_its_classes_in_another_order_is_refused_before_anything_is_written(
    order, is_ours, exact, root, tmp_path
):
    variables, about = jax.tree.map(np.copy, exact[0]), exact[1] if is_ours else {}
    layer = variables["params"]["classifier"]
    layer["kernel"] = layer["kernel"][..., order]
    place = tmp_path / "net.safetensors"
    network_file.write(place, variables, about)
    flags = [*folder_flags(root, tmp_path / "run"), f"--config.source.checkpoint={place}"]
    done = call("main", *flags, fails="models.parameter_table.write")  # after the check
    assert done.returncode == 1
    if order == [0, 1, 2]:
        assert "injected" in done.stderr and "source.checkpoint" not in done.stdout
        return
    assert f"source.checkpoint={place}" in done.stderr and done.stderr.count("\n") == 1
    for output, label in enumerate(order):
        assert (f"output {output} is {CLASSES[label]}" in done.stderr) == (output != label)
    assert not (tmp_path / "run").exists()


def test_external_translations_of_images_without_files_are_refused(tmp_path):
    message = refused(
        "main",
        "--config=configs/digits.py:smoke",
        f"--config.pair.translations={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert f"pair.translations={tmp_path}" in message and "embedded" in message


# Office-31


@pytest.mark.slow
def test_all_six_tasks_of_office_run_every_stage(tmp_path):
    """With all classes; the six tasks share three CycleGANs and three source networks."""
    root = write_office(tmp_path / "office")
    reuses = {"pair": 0, "source": 0}
    for task in ("a2w", "w2a", "a2d", "d2a", "d2w", "w2d"):
        done = call(
            "main",
            f"--config=configs/office.py:{task},smoke,data.limit=0",
            f"--config.data.dir={root}",
            *(f"--config.data.expected_counts.{name}=62" for name in ("amazon", "dslr", "webcam")),
            f"--workdir={tmp_path / 'runs' / task}",
        )
        assert done.returncode == 0, done.stderr
        reused = tmp_path / "runs" / task / "reused.json"
        for stage in json.loads(reused.read_text()) if reused.exists() else ():
            if stage in reuses:
                reuses[stage] += 1
        result = json.loads((tmp_path / "runs" / task / "result.json").read_text())
        assert set(result["per_class"]) == set(OFFICE_CLASSES)
        assert 0 <= result["accuracy"]["target_test"]["last"] <= 1
    assert reuses == {"pair": 3, "source": 3}


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [
        ("", "phone", ["data.source"]),
        ("catalogue", "", ["data.target"]),
        ("catalogue", "catalogue", ["all images ", "photos/catalogue"]),
        ("catalogue", "link", ["all images ", "photos/catalogue", "photos/link"]),
        ("catalogue", "links", ["all images ", "photos/catalogue", "photos/links"]),
        ("phone", "catalogue", ["photos/phone"]),
        ("other", "phone", ["photos/other/catalogue"]),  # the folder to use instead
        ("catalogue", "nowhere", ["photos/nowhere"]),
    ],
)
def test_folders_that_do_not_make_a_task_are_refused_and_leave_nothing(
    source, target, names, root, tmp_path
):
    shutil.copytree(root, tmp_path / "photos")
    shutil.copytree(root / "catalogue", tmp_path / "photos" / "other" / "catalogue")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "photos" / "catalogue")
    (tmp_path / "photos" / "links").mkdir()
    for name in CLASSES:
        link = tmp_path / "photos" / "links" / name
        link.symlink_to(tmp_path / "photos" / "catalogue" / name)
    place = {name: tmp_path / "photos" / name if name else "" for name in (source, target)}
    line = refused(
        "main",
        "--config=configs/folder.py:smoke",
        f"--config.data.source={place[source]}",
        f"--config.data.target={place[target]}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert all(name in line for name in names)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("amazon/images", "webcam/images"), ("amazon", "webcam")),
        (("images", "other/images"), ("{root}", "other")),
        (("a/x/images", "b/x/images"), ("a", "b")),
    ],
)
def test_domains_of_one_name_are_told_apart_by_their_folders(places, names, tmp_path):
    folders = [
        write_domain(tmp_path / place, CLASSES, each=1, seed=n) for n, place in enumerate(places)
    ]
    config = folder_config.get_config("smoke,data.limit=0").data
    config.update(source=str(folders[0]), target=str(folders[1]))
    task = load_task(config)
    expected = tuple(name.format(root=tmp_path.name) for name in names)
    assert (task.source_name, task.target_name) == expected


@pytest.mark.parametrize(
    ("source", "target"), [(".", "../phone"), ("pen/..", "../phone/."), ("../phone", ".")]
)
@pytest.mark.parametrize("as_records", [False, True])
def test_current_folder_has_its_own_name(source, target, as_records, tmp_path, monkeypatch):
    for seed, name in enumerate(("catalogue", "phone")):
        place = write_domain(tmp_path / "photos" / name, CLASSES, each=1, seed=seed)
        if as_records:
            convert.main([str(place), f"--out={tmp_path / name}", "--size=32"])
    (tmp_path / "catalogue" / "pen").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / ("." if as_records else "photos") / "catalogue")
    config = folder_config.get_config("smoke,data.limit=0,data.image_size=32").data
    config.update(source=source, target=target)
    task = load_task(config)
    names = ("phone", "catalogue") if target == "." else ("catalogue", "phone")
    assert (task.source_name, task.target_name) == names


@pytest.mark.parametrize("converted", [False, True])
def test_test_images_are_read_with_the_values_of_the_target(converted, tmp_path):
    ramp = np.tile(np.linspace(0, 1, 40), (40, 1))
    for domain, largest in (("catalogue", 255), ("phone", 4000), ("test", 1000)):
        for name in CLASSES:
            path = tmp_path / domain / name / "a.png"
            path.parent.mkdir(parents=True)
            Image.fromarray((ramp * largest).astype(np.uint16 if largest > 255 else np.uint8)).save(
                path
            )
    config = folder_config.get_config("smoke,data.limit=0").data
    places = {name: str(tmp_path / name) for name in ("catalogue", "phone", "test")}
    config.update(source=places["catalogue"], target=places["test"])
    alone = load_task(config).target_train.images  # and cached
    config.target = places["phone"]
    if converted:
        convert.convert(places["phone"], tmp_path / "r", config.image_size, 4, "raise")
        config.target = str(tmp_path / "r")
    config.target_test = places["test"]
    task = load_task(config)
    assert task.ranges == {"source": {}, "target": {"unsigned": [0, 4095]}}
    assert task.evaluation.target_test.images[:].max() == 1000 * 255 // 4095
    assert alone[:].max() == 1000 * 255 // 1023


def test_only_as_many_images_are_decoded_as_data_limit_allows(tmp_path, monkeypatch):
    source = write_domain(tmp_path / "catalogue", CLASSES, each=4)
    target = write_domain(tmp_path / "phone", CLASSES, each=3, seed=1)
    decoded = []
    read = photos.read
    monkeypatch.setattr(
        photos, "read", lambda path, *rest: decoded.append(path) or read(path, *rest)
    )
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


def test_class_without_a_readable_image_is_refused(tmp_path):
    source = write_domain(tmp_path / "catalogue", CLASSES, each=2)
    for path in (source / "pen").iterdir():
        path.write_bytes(b"no image")
    config = folder_config.get_config("smoke,data.on_error=skip,data.limit=0")
    config.data.update(source=str(source), target=str(write_domain(tmp_path / "t", CLASSES, 1)))
    with pytest.raises(UserError, match=r"catalogue\b.*\bpen\b"):
        load_task(config.data)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_links_that_lead_nowhere_are_named_where_a_class_has_no_other_image(on_error, tmp_path):
    source = write_domain(tmp_path / "catalogue", CLASSES, each=2)
    (source / "ruler").mkdir()
    (source / "ruler" / "a.jpg").symlink_to(tmp_path / "nowhere.jpg")
    config = folder_config.get_config("smoke,data.limit=0").data
    config.update(source=str(source), target=str(write_domain(tmp_path / "t", CLASSES, 1)))
    config.on_error = on_error
    with pytest.raises(UserError, match=r"\bruler\b.*ruler/a\.jpg: .*nowhere\.jpg"):
        load_task(config)


def test_records_keep_the_values_that_are_black_and_white(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 40), (40, 1))
    for domain in ("catalogue", "phone"):
        for name, largest in zip(CLASSES, (4000, 300, 200), strict=True):
            (tmp_path / domain / name).mkdir(parents=True)
            values = (ramp * largest + (domain == "phone")).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / domain / name / "a.png")
    config = folder_config.get_config("smoke,data.limit=0").data
    config.update(source=str(tmp_path / "catalogue"), target=str(tmp_path / "phone"))
    of_photos = load_task(config)
    for name in ("catalogue", "phone"):
        convert.convert(tmp_path / name, tmp_path / "r" / name, config.image_size, 4, "raise")
    config.update(source=str(tmp_path / "r/catalogue"), target=str(tmp_path / "r/phone"))
    of_records = load_task(config)
    both = {"unsigned": [0, 4095]}
    assert of_records.ranges == of_photos.ranges == {"source": both, "target": both}
    np.testing.assert_array_equal(of_records.source_train.images[:], of_photos.source_train.images)


@pytest.mark.parametrize("limit", [0, 5])
def test_links_that_lead_nowhere_count_as_left_out(limit, tmp_path):
    source = write_domain(tmp_path / "catalogue", CLASSES, each=3)
    target = write_domain(tmp_path / "phone", CLASSES, each=2, seed=1)
    for number in range(2):
        (source / "pen" / f"lost{number}.jpg").symlink_to(tmp_path / "nowhere")
    (target / "pen" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    config = folder_config.get_config(f"smoke,data.on_error=skip,data.limit={limit}").data
    config.update(source=str(source), target=str(target))
    task = load_task(config)
    assert task.left_out["catalogue"] == 2
    assert len(task.source_train.images) == (limit or 9)
    if not limit:
        assert task.left_out["phone"] == 1 and len(task.target_train.images) == 6


@pytest.mark.parametrize("domain", ["catalogue", "phone"])
def test_classes_with_similar_names_are_warned_of(domain, tmp_path, capsys):
    for number, name in enumerate(("catalogue", "phone")):
        write_domain(tmp_path / name, ("mug", "pen", "tea  cup"), each=1, seed=number)
    write_domain(tmp_path / "catalogue", ("Tea Cup",), each=1, seed=3)
    if domain == "phone":
        write_domain(tmp_path / "phone", ("Tea Cup",), each=1, seed=4)
        for name in ("mug", "pen"):
            write_domain(tmp_path / "phone", (name,), each=1)
    config = folder_config.get_config("smoke,data.limit=0").data
    config.update(source=str(tmp_path / "catalogue"), target=str(tmp_path / "phone"))
    load_task(config)
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warned) == (2 if domain == "phone" else 1)
    assert str(tmp_path / domain) in warned[-1]
    config.target_test = str(write_domain(tmp_path / "test", ("mug", "pen"), each=1, seed=5))
    load_task(config)
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert again == warned
    assert all("'Tea Cup' and 'tea  cup'" in line for line in warned)


@pytest.mark.parametrize(
    "setting, place",
    (
        ("target", "."),
        ("target", "link"),
        ("target_test", "link"),
        ("target_test", "catalogue/mug"),
    ),
)
def test_images_that_are_those_of_the_source_too_are_refused(tmp_path, setting, place):
    for number, name in enumerate(("catalogue", "phone")):
        write_domain(tmp_path / name, ("mug", "pen"), each=1, seed=number)
    (tmp_path / "link").symlink_to(tmp_path / "catalogue")
    config = folder_config.get_config("smoke,data.limit=0").data
    config.update(source=str(tmp_path / "catalogue"), target=str(tmp_path / "phone"))
    config[setting] = str(tmp_path / place)
    with pytest.raises(UserError, match=r"all images of .*catalogue\b"):
        load_task(config)


def test_records_give_the_same_task_as_the_photos(tmp_path):
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
    with pytest.raises(UserError, match=r"\b40\b.*data\.image_size\b.*\b24\b"):
        load_task(config.data)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["data.dir", "https://"]),
        (["--config.data.dir={root}"], ["office/webcam", "795", "data.expected_counts.webcam"]),
        (
            ["--config.data.dir={root}", "--config.data.expected_counts.webcam=6"],
            ["office/webcam", "31", "data.expected_classes"],
        ),
        (["--config.data.dir={root}/amazon"], ["office/amazon", "webcam"]),
    ],
)
def test_incomplete_office_is_refused_and_leaves_nothing(flags, names, tmp_path):
    root = write_office(tmp_path / "office", CLASSES)
    flags = [flag.format(root=root) for flag in flags]
    workdir = f"--workdir={tmp_path / 'run'}"
    line = refused("main", "--config=configs/office.py:w2a,smoke", workdir, *flags)
    assert all(name in line for name in names)
    assert not (tmp_path / "run").exists()


def test_tfds_builder_is_prepared_and_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    from daaa_jax.data.tfds_builders import OFFICE_CLASSES, Office31

    root = write_office(tmp_path / "office", OFFICE_CLASSES, each=1)
    builder = Office31(data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(root)))
    assert "tensorflow" not in sys.modules
    rows = builder.as_data_source(split="webcam")
    assert len(rows) == 31
    for row in rows:
        name = row["file"].decode()
        assert OFFICE_CLASSES[row["label"]] == Path(name).parent.name
        np.testing.assert_array_equal(row["image"], Image.open(root / "webcam" / name))
