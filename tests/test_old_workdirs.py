"""Working directories of earlier versions open, and their finished stages are reused.

The fixtures are smoke runs of commit 6a3d3c2 (no paired posterior) and of 0a053ea:

    python -m daaa_jax.main --config=configs/digits.py:embedded,smoke \
        '--config.model.widths=(4, 4, 8)' --config.data.limit=24 --config.pair.filters=2 \
        --config.pair.discriminator_filters=2 --config.adapt.rounds=2 --workdir=runs/tiny
"""

import csv
import json
import zipfile
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from daaa_jax import api, config_files, pipeline, reproduce
from daaa_jax.experiment.workdir import Workdir

OLD, FIRST = "6a3d3c2", "0a053ea"  # the first with the paired posterior
SETTINGS = {
    "model.widths": (4, 4, 8),
    "data.limit": 24,
    "pair.filters": 2,
    "pair.discriminator_filters": 2,
    "adapt.rounds": 2,
}
SHARED = ("pair", "translate", "source")


def unpack(version, folder):
    with zipfile.ZipFile(Path(__file__).parent / "fixtures" / f"workdir_{version}.zip") as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture(params=[OLD, FIRST])
def workdir(request, tmp_path):
    return unpack(request.param, tmp_path / "run")


def image(folder):
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "digit.png")
    return folder


def config_of_fixtures():
    config = config_files.load("digits:embedded,smoke")
    with config.unlocked():
        config.update_from_flattened_dict(SETTINGS)
    return config


def test_networks_predict_and_are_exported(workdir, tmp_path):
    images = image(tmp_path / "images")
    done = commands.call("predict", f"--workdir={workdir}", images)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((workdir / "predictions.csv").read_text().splitlines())
    assert sum(float(row[f"p({digit})"]) for digit in "0123456789") == pytest.approx(1, abs=0.01)
    done = commands.call("export", f"--workdir={workdir}", f"--out={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.stablehlo").stat().st_size
    source = api.load_network(workdir, "source")
    assert source.model.num_classes == 10


def test_report_is_written(workdir):
    done = commands.call("report", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((workdir / "result.json").read_text())["accuracy"]["target_test"]["last"]
    assert f"{100 * accuracy:.1f}" in (workdir / "report" / "index.html").read_text()


@pytest.mark.parametrize("command", ["predict", "export"])
def test_unfinished_run_is_refused_in_one_line(workdir, tmp_path, command):
    networks = workdir.glob("adapt/*.safetensors")
    for path in (workdir / "result.json", workdir / "adapt" / "finished.json", *networks):
        path.unlink()
    extra = {"predict": image(tmp_path / "images"), "export": f"--out={tmp_path / 'model'}"}
    done = commands.call(command, f"--workdir={workdir}", extra[command])
    assert done.returncode == 1
    assert str(workdir) in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_training_does_not_resume_an_older_unfinished_run(tmp_path):
    workdir = unpack(OLD, tmp_path / "run")
    (workdir / "result.json").unlink()
    flags = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    done = commands.call(
        "main", "--config=configs/digits.py:embedded,smoke", *flags, f"--workdir={workdir}"
    )
    assert done.returncode == 1
    assert str(workdir) in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (OLD, "digits-embedded-smoke-pair.seed=0-seed=0-source.seed=0"),
        (
            FIRST,
            "digits-embedded-smoke-adapt.recolour=0.0-em.posterior=target-pair.seed=0-seed=0"
            "-source.seed=0",
        ),
        (
            FIRST,
            "digits-embedded-smoke-adapt.recolour=0.0-em.posterior=target-em.threshold=0.95"
            "-pair.seed=0-seed=0-source.seed=0",
        ),
    ],
)
def test_sweep_is_shown(tmp_path, version, name):
    workdir = unpack(version, tmp_path / "runs" / name)
    arguments = ["--data=embedded", "--smoke", "--seeds=1", "--only_show"]
    reproduce.main([f"--workdir={tmp_path}", "table3", *arguments])
    (table,) = tmp_path.glob("table3*.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    accuracy = json.loads((workdir / "result.json").read_text())["accuracy"]["target_test"]["last"]
    (shown,) = (row["mean"] for row in rows if row["method"] == "Ours (w L_AT)")
    assert float(shown) == pytest.approx(100 * accuracy, abs=0.1)
    text = table.with_suffix(".md").read_text()
    assert "data.limit (was 24, is 256)" in text and "em.posterior" not in text
    reproduce.main([f"--workdir={tmp_path}", "fig4", *arguments])
    assert list(tmp_path.glob("fig4*.svg"))


def test_finished_stages_are_reused(tmp_path, capsys):
    given, new = unpack(FIRST, tmp_path / "elsewhere" / "run"), tmp_path / "runs" / "new"
    config = config_of_fixtures()
    config.run.reuse = str(given)
    for stage in SHARED:
        pipeline.run(config, Workdir(new), stage)
        assert str(given / stage) in capsys.readouterr().out
        assert not (new / stage / "finished.json").exists()


def test_reproduce_reuses_finished_stages(tmp_path, capsys):
    sibling = unpack(FIRST, tmp_path / "runs" / "first")

    def train(config, workdir):
        config.update_from_flattened_dict(SETTINGS)
        for stage in SHARED:
            pipeline.run(config, workdir, stage)

    arguments = ["table3", "--data=embedded", "--smoke", "--seeds=1", "--methods=Ours (w L_AT)"]
    reproduce.main([f"--workdir={tmp_path}", *arguments], train)
    printed = capsys.readouterr().out
    assert all(str(sibling / stage) in printed for stage in SHARED), printed
