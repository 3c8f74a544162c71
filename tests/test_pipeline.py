"""The command, from its flags to its result: run as a user runs it."""

import contextlib
import csv
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import filelock
import numpy as np
import pytest
from commands import call, refused
from PIL import Image

from daaa_jax.data import load_task
from daaa_jax.errors import UserError
from daaa_jax.experiment.workdir import Workdir, command, default_workdir
from daaa_jax.models import network_file
from daaa_jax.runtime import exit_codes, metrics

STAGES = ("pair", "translate", "source", "adapt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A finished smoke run: its workdir and what it printed."""
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    done = commands.fresh("main", "--config=configs/digits.py:smoke", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout + done.stderr


def outcome(workdir: Path) -> dict[str, object]:
    """All that a run computes, without the times that it took and what they are of."""
    markers = {
        stage: json.loads((workdir / stage / "finished.json").read_text()) for stage in STAGES
    }
    for marker in markers.values():
        for name in ("seconds", "device_seconds", "images"):
            marker["extra"].pop(name)
    parts = {path.name: path.read_bytes() for path in workdir.glob("translate/*/part-*")}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {"markers": markers, "parts": parts, "metrics": [json.loads(line) for line in lines]}


def assert_accuracies_are_printed(workdir: Path, printed: str) -> None:
    """Each accuracy on the target domain, with its name in `result.json`, below the data's name."""
    result = json.loads((workdir / "result.json").read_text())
    assert re.search(r"^embedded: mnist -> mnist_m, seed 0, test images:$", printed, re.MULTILINE)
    for name, value in result["accuracy"]["target_test"].items():
        assert re.search(rf"{value:.2%}\s+\({name}\)", printed), name


def test_smoke_run_writes_a_result_and_every_file_of_the_working_directory(finished):
    workdir, printed = finished
    result = json.loads((workdir / "result.json").read_text())
    assert result["task"] == "mnist -> mnist_m"
    three = {"last", "selected", "oracle"}
    assert set(result["accuracy"]["target_test"]) == three | {"paired_last", "paired_selected"}
    assert 0 <= result["accuracy"]["source_translated"] <= 1
    counts = {"confident", "contradictions", "own", "others"}
    assert set(result["em"]) == {"gamma", "e", "e0", "e1", *counts}
    assert 0.5 < result["accuracy"]["source_test"] <= 1
    assert sum(map(sum, result["confusion"])) == 256
    assert set(result["seconds"]) == set(STAGES)
    oracle = result["accuracy"]["target_test"]["oracle"]
    assert oracle == max(
        line["target_test"]
        for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        if line["stage"] == "adapt" and "target_test" in line
    )
    for name in (
        "config.json",
        "pair/pairs.png",
        "networks.txt",
        "adapt/selected.safetensors",
        "tensorboard/adapt",
    ):
        assert (workdir / name).exists(), name
    assert re.search(r"\bclassifier\b.*\b113,962\b", printed)
    assert_accuracies_are_printed(workdir, printed)


def test_round_lines_show_what_em_and_alignment_do(finished):
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["stage"] == "adapt" and "information" in line]
    assert [line["step"] for line in rounds] == [8, 16, 24]
    for line in rounds:
        assert {
            "kept",
            "confidence",
            "round_alignment",
            "kept_accuracy",
            "source_test",
            "target_test",
            "target_test_selected",
            "target_test_oracle",
        } <= set(line)


def test_throughput_and_device_hours_are_those_of_the_stages(finished):
    workdir = Workdir(finished[0])
    result, stages = workdir.result(), ("pair", "translate", "source", "adapt")
    outputs = {stage: workdir.marker(stage)["extra"] for stage in stages}
    seconds = {stage: known["device_seconds"] for stage, known in outputs.items()}
    assert all(value > 0 for value in seconds.values())
    assert result["device_hours"] == pytest.approx(sum(seconds.values()) / 3600)
    config = workdir.config()
    updates = {"adapt": config.adapt.rounds * config.adapt.round_steps, "translate": 1}
    sizes = {"adapt": config.adapt.batch_size, "translate": 2 * 256}
    for stage in sizes:
        images = updates[stage] * sizes[stage]
        assert result["images_per_second"][stage] == pytest.approx(images / seconds[stage])
    assert result["images_per_second"].keys() == set(stages)


def test_both_networks_know_the_weight_of_the_second_view(finished):
    """`selected` too, which may be of the first round, before the weight was measured."""
    em = json.loads((finished[0] / "result.json").read_text())["em"]
    for name in ("last", "selected"):
        assert network_file.read_about(finished[0] / f"adapt/{name}.safetensors")["em"] == em


def test_examples_of_the_python_interface_run(finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits-smoke").symlink_to(finished[0])
    monkeypatch.chdir(tmp_path)
    text = (commands.ROOT / "docs" / "python.md").read_text()
    found = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(example, found)
    assert (
        found["result"].accuracy
        == json.loads((finished[0] / "result.json").read_text())["accuracy"]
    )
    assert found["probabilities"].shape == (3, 10)
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert {each.shape[0] for each in found["maps"].values()} == {3} and len(found["maps"]) == 3
    assert found["translations"].shape == (3, 32, 32, 3)
    assert found["translations"].dtype == np.uint8


def test_benchmark_of_soft_labels_reads_the_networks_and_translations_of_a_run(finished):
    from benchmarks import soft_labels

    found = soft_labels.variants(Workdir(finished[0]))
    accuracy = json.loads((finished[0] / "result.json").read_text())["accuracy"]
    wanted = {
        "adapted network on x^T": accuracy["target_test"]["last"],
        "source network on G_TS(x^T)": accuracy["source_translated"],
    }
    for name, value in wanted.items():
        assert found[name].accuracy == pytest.approx(value, abs=0.005)  # an image of 256


def test_paired_predictions_have_the_accuracy_of_the_result(finished, tmp_path):
    workdir = Workdir(finished[0])
    test = load_task(workdir.config().data).evaluation.target_test
    for number, image in enumerate(test.images[:]):
        Image.fromarray(image).save(tmp_path / f"{number:03}.png")
    out = tmp_path / "out.csv"
    done = call("predict", f"--workdir={workdir}", "--paired", f"--out={out}", tmp_path)
    assert done.returncode == 0, done.stderr
    classes = [int(row["class"]) for row in csv.DictReader(out.open())]
    accuracy = workdir.result()["accuracy"]["target_test"]["paired_selected"]
    assert np.mean(classes == test.labels) == pytest.approx(accuracy, abs=0.005)


def test_second_run_of_the_same_command_only_prints_the_result(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    done = call("main", "--config=configs/digits.py:smoke", f"--workdir={workdir}")
    assert done.returncode == 0
    assert_accuracies_are_printed(workdir, done.stdout)
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    assert after == before


def test_stage_run_alone_on_finished_stages_of_another_workdir_ends_with_a_result(
    finished, tmp_path
):
    other, _ = finished
    done = call(
        "main",
        "--config=configs/digits.py:smoke,adapt.beta=0.0",
        f"--workdir={tmp_path / 'run'}",
        f"--config.run.reuse={other}",
        "--stage=adapt",
    )
    assert done.returncode == 0, done.stderr
    # What paired inference needs is kept, whoever trained it.
    generators = "pair/generators.safetensors"
    assert (tmp_path / "run" / generators).read_bytes() == (other / generators).read_bytes()
    assert [path.name for path in (tmp_path / "run/pair").iterdir()] == ["generators.safetensors"]
    assert not (tmp_path / "run/source").exists()
    result = json.loads((tmp_path / "run/result.json").read_text())
    original = json.loads((other / "result.json").read_text())
    assert result["accuracy"]["source_only"] == original["accuracy"]["source_only"]
    assert result["seconds"]["pair"] == original["seconds"]["pair"]
    # Device hours are of what was computed here.
    outputs = Workdir(tmp_path / "run").marker("adapt")["extra"]
    assert result["device_hours"] == pytest.approx(outputs["device_seconds"] / 3600)


def test_workdir_of_another_config_is_refused_and_the_setting_named(finished):
    line = refused(
        "main", "--config=configs/digits.py:smoke,adapt.beta=0.7", f"--workdir={finished[0]}"
    )
    assert re.search(r"\badapt\.beta\b.*\b0\.1\b.*\b0\.7\b", line)


@pytest.mark.parametrize(("name", "content"), [("run", "a file"), ("run/config.json", "{}")])
def test_workdir_that_is_something_else_is_refused_and_left_alone(name, content, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    line = refused("main", "--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "run") in line and path.name in line
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == content


def test_settings_that_keep_a_stage_from_being_reused_are_named(finished, tmp_path):
    done = call(
        "main",
        "--config=configs/digits.py:smoke,source.epochs=1",
        f"--workdir={tmp_path / 'run'}",
        f"--config.run.reuse={finished[0]}",
        "--stage=source",
    )
    assert done.returncode == 0, done.stderr
    why = r"^source: .*\bsource\.epochs\b.*\b4\b.*\b1\b"
    assert re.search(why, done.stdout, re.MULTILINE)


def test_finished_stage_that_lost_its_network_is_not_trained_again(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "source" / "checkpoints")  # is not needed any more
    (tmp_path / "run" / "source" / "network.safetensors").unlink()
    line = refused(
        "main",
        "--config=configs/digits.py:smoke,adapt.beta=0.0",
        f"--workdir={tmp_path / 'other'}",
        f"--config.run.reuse={tmp_path / 'run'}",
    )
    assert f"{tmp_path / 'run' / 'source' / 'network.safetensors'}" in line


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--config=configs/digits.py", "--config.adapt.betta=1"], ["adapt.betta", "adapt.beta"]),
        (["--config=configs/digits.py:embeded"], ["embeded", "embedded"]),
        (["--config=configs/digits.py:smoke,adapt.rond=3"], ["adapt.rond", "adapt.rounds"]),
        (
            ["--config=configs/digits.py:smoke", "--config.adapt.bta=0.3"],
            ["adapt.bta", "adapt.beta"],
        ),
        (["--config=configs/digits.py:smoke,adapt.beta=x"], ["adapt.beta=x", "float"]),
        (["--config=configs/nothing.py"], ["--config=configs/nothing.py"]),
        (
            ["--config=configs/digits.py:smoke", "--stage=adopt"],
            ["--stage=adopt", "pair, translate, source, adapt"],
        ),
        (["--config=configs/digits.py:smoke", "smoke"], ["smoke", "--config."]),
        ([], ["--config"]),
        (["--config=configs/digits.py:mnist2mnistm", "--config.data.dir=/nowhere"], ["/nowhere"]),
        (["--config=configs/digits.py:smoke,source.batch_size=0"], ["source.batch_size", "0"]),
        (["--config=configs/digits.py:smoke,pair.batch_size=-1"], ["pair.batch_size", "-1"]),
        (
            ["--config=configs/digits.py:smoke,model.name=digit"],
            ["model.name=digit", "digits", "resnet50"],
        ),
        (
            ["--config=configs/digits.py:smoke", "--config.model.widths=(8,8)"],
            ["model.widths", "8x8", "4x4"],
        ),
        (
            ["--config=configs/digits.py:smoke", "--config.model.widths=(0,8,8)"],
            ["model.widths=(0, 8, 8)"],
        ),
        (
            ["--config=configs/digits.py:smoke,em.start_step=0,em.refresh_every=600"],
            ["em.posterior=paired", "em.refresh_every=600", "24"],
        ),
        (["--config=configs/digits.py:smoke,em.tolerance=0"], ["em.tolerance=0"]),
        (["--config=configs/digits.py:smoke,adapt=3"], ["adapt.beta", "adapt.rounds"]),
        (["--config=configs/digits.py:smoke,pair.epochs=True"], ["pair.epochs=True", "int"]),
        (["--config=configs/digits.py:smoke,adapt.mix.s=nan"], ["adapt.mix.s=nan"]),
        (["--config=configs/digits.py:smoke", "--config.adapt.beta=nan"], ["adapt.beta=nan"]),
        (
            ["--config=configs/digits.py:smoke", "--config.data.dir=/tmp"],
            ["data.dir=/tmp", "configs/digits.py:mnist2mnistm"],
        ),
        (["--config=configs/digits.py:smoke,data.test_size=0"], ["data.test_size=0"]),
        (["--config=configs/base.py"], ["configs/digits.py", "configs/folder.py"]),
        (["--config=configs/digits.py:smoke,pair.downsamplings=6"], ["32x32", "6"]),
        (
            ["--config=configs/digits.py:smoke,pair.discriminator_layers=4"],
            ["32x32", "discriminator", "4"],
        ),
        (
            ["--config=configs/digits.py:smoke,pair.discriminator_layers=9"],
            ["32x32", "discriminator", "9"],
        ),
        (
            ["--config=configs/digits.py:smoke,adapt.layers=conv9"],
            ["adapt.layers", "conv9", "conv1, conv2, conv3"],
        ),
        (
            ["--config=configs/digits.py:smoke,adapt.measure=jmmd,adapt.layers=conv1"]
            + ["--config.adapt.jmmd_layers=conv2"],
            ["adapt.jmmd_layers", "conv2", "conv1"],
        ),
        (["--config=configs/digits.py:smoke,em.threshold=95"], ["em.threshold=95.0"]),
        (
            ["--config=configs/digits.py:smoke,em.refresh_every=600"],
            ["em.start_step=8", "em.refresh_every=600"],
        ),
        (["--config=configs/digits.py:smoke", "--config.run.reuse=/nowhere"], ["reuse=/nowhere"]),
        (
            ["--config=configs/digits.py:smoke", "--stage=adapt"],
            ["--stage=adapt", "--stage=pair"],
        ),
        (["--config=README.md"], ["--config=README.md"]),
        (
            ["--config.run.deterministic", "--config.seed=1", "--config=configs/digits.py:smoke"],
            ["--config.run.deterministic=VALUE"],
        ),
        (
            ["--config=configs/digits.py:smoke,data.seed=202611271530"],
            ["data.seed=202611271530", "4294967295"],
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(flags, names, tmp_path):
    workdir = tmp_path / "run"
    line = refused("main", *flags, f"--workdir={workdir}")
    assert all(name in line for name in names) and "\n" not in line, line
    left = {path.name for path in workdir.rglob("*") if path.is_file()} if workdir.exists() else {}
    assert not left


def test_address_is_refused_as_a_working_directory():
    line = refused("main", "--config=configs/digits.py:smoke", "--workdir=gs://bucket/run")
    assert "--workdir=gs:/bucket/run" in line
    assert not Path("gs:").exists()


def test_no_cyclegan_is_trained_if_no_loss_uses_translations(tmp_path):
    flags = (
        "--config=configs/digits.py:smoke,em.posterior=target,adapt.beta=0.0",
        *("--config.adapt.mix.t_f=0", "--config.adapt.mix.s_f=0", "--config.run.reuse=none"),
        f"--workdir={tmp_path}",
    )
    line = refused("main", *flags, "--stage=pair")
    settings = ("adapt.mix.t_f", "adapt.mix.s_f", "adapt.beta", "em.posterior")
    assert all(name in line for name in ("--stage=pair", *settings))
    done = call("main", *flags)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pair").exists() and not (tmp_path / "translate").exists()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["seconds"].keys() == {"source", "adapt"}
    assert "em" not in result and "paired_last" not in result["accuracy"]["target_test"]
    assert not any("alignment" in line for line in metrics.read(tmp_path / "metrics.jsonl"))
    line = refused("predict", f"--workdir={tmp_path}", "--paired", ".")
    assert "adapt.mix.t_f" in line and "em.posterior" in line


def progress(workdir: Path, stage: str) -> int:
    """Changes whenever a stage makes progress: lines of metrics, checkpoints, translations."""
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().count(f'"{stage}"') if metrics.exists() else 0
    return lines + sum(1 for _ in (workdir / stage).rglob("*"))


@pytest.mark.slow
def test_run_killed_at_ten_random_moments_ends_with_the_same_parameters(finished, tmp_path):
    """At least two kills in each stage: while it compiles, trains, saves or evaluates."""
    whole, _ = finished
    flags = ("--config=configs/digits.py:smoke", f"--workdir={tmp_path}", "--config.run.reuse=none")
    chance = random.Random(0)
    for stage in ("pair",) * 3 + ("translate",) * 2 + ("source",) * 2 + ("adapt",) * 3:
        before = progress(tmp_path, stage)
        process = subprocess.Popen(
            [sys.executable, "-m", "daaa_jax.main", *flags],
            cwd=commands.ROOT,
            env=commands.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Only what this process does counts: restarted, it needs seconds to come back.
        while process.poll() is None and progress(tmp_path, stage) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        assert process.poll() is None, f"{stage} was over before the kill"
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = call("main", *flags)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.parametrize(
    ("config", "changed", "place"),
    [
        ("configs/digits.py", {}, "runs/digits"),
        ("configs/digits.py:mnist2mnistm,smoke", {}, "runs/digits-mnist2mnistm-smoke"),
        ("configs/digits.py", {"seed": 1}, "runs/digits-seed=1"),
        (
            "configs/digits.py",
            {"data.dir": "/d", "run.reuse": "runs/digits", "adapt.beta": 0.0},
            "runs/digits-adapt.beta=0.0",
        ),
        ("configs/folder.py", {"data.source": "/a/b", "data.target": "c"}, "runs/folder"),
    ],
)
def test_default_workdir_is_named_after_what_a_run_computes(config, changed, place):
    """So that commands with another seed or setting do not use the first one's workdir."""
    assert default_workdir(config, changed) == Path(place)


def test_long_names_are_cut_and_stay_distinct():
    places = [
        default_workdir("configs/folder.py", {"source.checkpoint": "/ö" * 150 + end})
        for end in "ab"
    ]
    assert places[0] != places[1]
    assert all(250 < len(place.name.encode()) <= 255 for place in places)


def test_workdir_that_another_run_writes_to_is_refused(tmp_path):
    with Workdir(tmp_path).locked():
        program = (
            "from daaa_jax.experiment.workdir import Workdir; "
            f"Workdir({str(tmp_path)!r}).locked().__enter__()"
        )
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        error = other.stderr.splitlines()[-1]
        assert "Busy" in error and str(tmp_path) in error and other.returncode
    with Workdir(tmp_path / "run").locked():
        flags = ("--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}")
        assert str(tmp_path / "run") in refused("main", *flags)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with Workdir(tmp_path).locked():
        pass


@pytest.mark.parametrize(
    ("code", "refused"),
    [(errno.ENOLCK, False), (errno.EOPNOTSUPP, False), (errno.ENOSYS, False), (errno.EROFS, True)],
)
def test_file_system_without_locks_is_used_without(tmp_path, monkeypatch, code, refused):
    def acquire(lock):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    expected = contextlib.nullcontext()
    if refused:
        expected = pytest.raises(UserError, match=str(tmp_path))
    with expected, Workdir(tmp_path).locked():
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/runs/a"),
        PermissionError(13, "Permission denied", "/runs"),
    ],
)
def test_disk_error_is_one_line_that_names_the_file(error, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as caught:
        exit_codes.run(fail)
    assert caught.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert error.filename in line and error.strerror.lower() in line.lower()


def test_command_is_recorded_as_a_person_would_type_it():
    path = "/somewhere/daaa_jax/main.py"
    assert command([path, "--config=c:a b"]) == "python -m daaa_jax.main '--config=c:a b'"
    assert command(["/usr/bin/pytest", "-x"]) == "/usr/bin/pytest -x"
