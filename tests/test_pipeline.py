"""The command, from its flags to its result: run as a user runs it."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
from commands import call, refused

from daaa_jax import main, workdir
from daaa_jax.models import trained
from daaa_jax.runtime import endings, lock

STAGES = ("pair", "translate", "source", "adapt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A finished smoke run: its workdir and what it printed."""
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    done = commands.fresh("main", "--config=configs/digits.py:smoke", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout + done.stderr


def outcome(workdir: Path) -> dict[str, object]:
    """All that a run computes, without the times that it took."""
    markers = {
        stage: json.loads((workdir / stage / "finished.json").read_text()) for stage in STAGES
    }
    for marker in markers.values():
        marker["extra"].pop("seconds")
    parts = {path.name: path.read_bytes() for path in workdir.glob("translate/*/part-*")}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {"markers": markers, "parts": parts, "metrics": [json.loads(line) for line in lines]}


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
    assert "classifier: 113,962 parameters" in printed
    assert "adapted, after the last round" in printed


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


def test_both_networks_know_the_weight_of_the_second_view(finished):
    """`selected` too, which may be of the first round, before the weight was measured."""
    em = json.loads((finished[0] / "result.json").read_text())["em"]
    for name in ("last", "selected"):
        assert trained.read_about(finished[0] / f"adapt/{name}.safetensors")["em"] == em


def test_benchmark_of_soft_labels_reads_the_networks_and_translations_of_a_run(finished):
    from benchmarks import soft_labels

    found = soft_labels.variants(finished[0])
    accuracy = json.loads((finished[0] / "result.json").read_text())["accuracy"]
    wanted = {
        "adapted network on x^T": accuracy["target_test"]["last"],
        "source network on G_TS(x^T)": accuracy["source_translated"],
    }
    for name, value in wanted.items():
        assert found[name].accuracy == pytest.approx(value, abs=0.005)  # an image of 256


def test_second_run_of_the_same_command_only_prints_the_result(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    done = call("main", "--config=configs/digits.py:smoke", f"--workdir={workdir}")
    assert done.returncode == 0
    assert "adapted, after the last round" in done.stdout
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


def test_workdir_of_another_config_is_refused_and_the_setting_named(finished):
    line = refused(
        "main", "--config=configs/digits.py:smoke,adapt.beta=0.7", f"--workdir={finished[0]}"
    )
    assert "adapt.beta (was 0.1, is 0.7)" in line


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run", "a file", "is a file, not a folder"),
        ("run/config.json", "{}", "not the file that a run writes"),
    ],
)
def test_workdir_that_is_something_else_is_refused_and_left_alone(name, content, says, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert says in refused(
        "main", "--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}"
    )
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == content


def test_stage_that_is_not_reused_says_why(finished, tmp_path):
    done = call(
        "main",
        "--config=configs/digits.py:smoke,source.epochs=1",
        f"--workdir={tmp_path / 'run'}",
        f"--config.run.reuse={finished[0]}",
        "--stage=source",
    )
    assert done.returncode == 0, done.stderr
    assert "source: not reused, source.epochs (was 4, is 1)" in done.stdout


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
    ("flags", "says"),
    [
        (["--config=configs/digits.py", "--config.adapt.betta=1"], "beta"),
        (["--config=configs/digits.py:embeded"], "did you mean 'embedded'"),
        (["--config=configs/digits.py:smoke,adapt.rond=3"], "did you mean 'adapt.rounds'"),
        (
            ["--config=configs/digits.py:smoke", "--config.adapt.bta=0.3"],
            "setting 'adapt.bta' is unknown; did you mean 'adapt.beta'?",
        ),
        (["--config=configs/digits.py:smoke,adapt.beta=x"], "adapt.beta=x: expected"),
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--config=configs/digits.py:smoke", "--stage=adopt"], "choose pair, translate"),
        (["--config=configs/digits.py:smoke", "smoke"], "'smoke' is not a flag"),
        ([], "--config is missing"),
        (["--config=configs/digits.py:mnist2mnistm", "--config.data.dir=/nowhere"], "/nowhere"),
        (["--config=configs/digits.py:smoke,source.batch_size=0"], "source.batch_size is 0"),
        (["--config=configs/digits.py:smoke,pair.batch_size=-1"], "pair.batch_size is -1"),
        (
            ["--config=configs/digits.py:smoke,model.name=digit"],
            "model.name=digit is unknown: choose",
        ),
        (["--config=configs/digits.py:smoke", "--config.model.widths=(8,8)"], "takes 4x4"),
        (["--config=configs/digits.py:smoke", "--config.model.widths=(0,8,8)"], "at least 1"),
        (["--config=configs/digits.py:smoke,adapt=3"], "'adapt' is a group: adapt."),
        (["--config=configs/digits.py:smoke,pair.epochs=True"], "expected a value of type int"),
        (["--config=configs/digits.py:smoke,adapt.mix.s=nan"], "setting adapt.mix.s=nan"),
        (["--config=configs/digits.py:smoke", "--config.adapt.beta=nan"], "beta=nan is no number"),
        (["--config=configs/digits.py:smoke", "--config.data.dir=/tmp"], "of no use to the embed"),
        (["--config=configs/digits.py:smoke,data.test_size=0"], "the first not 0"),
        (["--config=configs/base.py"], "names no task"),
        (["--config=configs/digits.py:smoke,pair.downsamplings=6"], "cannot be halved 6 times"),
        (["--config=configs/digits.py:smoke,pair.discriminator_layers=4"], "too small for a"),
        (["--config=configs/digits.py:smoke,pair.discriminator_layers=9"], "too small for a"),
        (["--config=configs/digits.py:smoke,adapt.layers=conv9"], "no layer matches 'conv9'"),
        (
            ["--config=configs/digits.py:smoke,adapt.measure=jmmd,adapt.layers=conv1"]
            + ["--config.adapt.jmmd_layers=conv2"],
            "no layer matches 'conv2'; there are: conv1",
        ),
        (["--config=configs/digits.py:smoke,em.threshold=95"], "em.threshold=95.0 is compared"),
        (["--config=configs/digits.py:smoke,em.refresh_every=600"], "set it to 600"),
        (["--config=configs/digits.py:smoke", "--config.run.reuse=/nowhere"], "/nowhere is no"),
        (["--config=configs/digits.py:smoke", "--stage=adapt"], "--stage=pair first"),
        (["--config=README.md"], "README.md"),
        (["--config=configs/digits.py:smoke,data.seed=202611271530"], "choose at most 4294967295"),
        (["--config=configs/digits.py:smoke,seed=4294967295", "--config.seeds=2"], "at most 429"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(flags, says, tmp_path):
    workdir = tmp_path / "run"
    assert says in refused("main", *flags, f"--workdir={workdir}")
    left = {path.name for path in workdir.rglob("*") if path.is_file()} if workdir.exists() else {}
    assert not left


def test_address_is_no_working_directory(tmp_path):
    line = refused("main", "--config=configs/digits.py:smoke", "--workdir=gs://bucket/run")
    assert "gs:/bucket/run is an address" in line
    assert not Path("gs:").exists()


def test_where_no_loss_looks_at_translations_no_cyclegan_is_trained(tmp_path):
    flags = (
        "--config=configs/digits.py:smoke,em.posterior=target,adapt.beta=0.0",
        *("--config.adapt.mix.t_f=0", "--config.adapt.mix.s_f=0", "--config.run.reuse=none"),
        f"--workdir={tmp_path}",
    )
    assert "no loss looks at translations" in refused("main", *flags, "--stage=pair")
    done = call("main", *flags)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pair").exists() and not (tmp_path / "translate").exists()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["seconds"].keys() == {"source", "adapt"}
    assert "em" not in result and "paired_last" not in result["accuracy"]["target_test"]
    assert "no loss looks" in refused("predict", f"--workdir={tmp_path}", "--paired", ".")


def progress(workdir: Path, stage: str) -> int:
    """Changes whenever a stage gets on: lines of metrics, checkpoints, translations."""
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().count(f'"{stage}"') if metrics.exists() else 0
    return lines + sum(1 for _ in (workdir / stage).rglob("*"))


@pytest.mark.slow
def test_run_killed_at_ten_random_moments_ends_with_the_same_parameters(finished, tmp_path):
    """Two and more kills in each stage: while it compiles, trains, saves or evaluates."""
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
def test_default_place_is_named_by_what_a_run_computes(config, changed, place):
    """So that the commands for another seed or setting do not meet the first one's run."""
    assert main.default_workdir(config, changed) == Path(place)


def test_long_names_are_cut_and_stay_apart():
    places = [
        main.default_workdir("configs/folder.py", {"source.checkpoint": "/ö" * 150 + end})
        for end in "ab"
    ]
    assert places[0] != places[1]
    assert all(250 < len(place.name.encode()) <= 255 for place in places)


def test_workdir_that_another_run_writes_to_is_refused(tmp_path):
    with lock.held(tmp_path):
        program = (
            "from pathlib import Path; from daaa_jax.runtime import lock; "
            f"lock.held(Path({str(tmp_path)!r})).__enter__()"
        )
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"another run is writing to {tmp_path}" in other.stderr and other.returncode
    with lock.held(tmp_path / "run"):
        flags = ("--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}")
        assert "another run is writing to" in refused("main", *flags)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]
    with lock.held(tmp_path):
        pass


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(28, "No space left on device", "/runs/a"), 1, "error: /runs/a: no space left"),
        (PermissionError(13, "Permission denied", "/runs"), 1, "error: /runs: permission denied"),
        (FileNotFoundError(2, "No such file", "/runs"), None, ""),
    ],
)
def test_disk_that_refuses_is_one_line_and_what_is_the_programs_own_is_not(
    error, code, says, capsys
):
    def command():
        raise error

    with pytest.raises(SystemExit if code else OSError) as caught:
        endings.run(command)
    assert code is None or caught.value.code == code
    assert says in capsys.readouterr().err


def test_command_is_what_a_person_would_type():
    path = "/somewhere/daaa_jax/main.py"
    assert workdir.command([path, "--config=c:a b"]) == "python -m daaa_jax.main '--config=c:a b'"
    assert workdir.command(["/usr/bin/pytest", "-x"]) == "/usr/bin/pytest -x"
