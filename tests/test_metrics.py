"""Metrics reach `metrics.jsonl` and TensorBoard once each, also after a run was interrupted."""

import json
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from daaa_jax.runtime import metrics
from daaa_jax.runtime.metrics import MetricWriter


def events(workdir, stage):
    """Every TensorBoard event of a stage, read from the record format itself."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((workdir / "tensorboard" / stage).iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            found.append(Event.FromString(content[position + 12 : position + 12 + length]))
            position += 12 + length + 4
    return found


def test_metrics_are_read_back_from_the_lines_and_from_tensorboard(tmp_path):
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.scalars("pair", 10, {"loss": jnp.float32(0.5), "count": 3, "rate": np.float64(1e-4)})
        writer.scalars("adapt", 20, {"loss": 0.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"stage": "pair", "step": 10, "loss": 0.5, "count": 3, "rate": 1e-4},
        {"stage": "adapt", "step": 20, "loss": 0.25},
    ]
    assert metrics.read(tmp_path / "metrics.jsonl") == lines
    shown = {
        (value.tag, event.step): value.simple_value
        for event in events(tmp_path, "pair")
        for value in event.summary.value
    }
    assert shown == {("loss", 10): 0.5, ("count", 10): 3, ("rate", 10): pytest.approx(1e-4)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -jnp.inf])
def test_metric_that_is_not_finite_becomes_null(tmp_path, value):
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.scalars("pair", 1, {"loss": value, "other": 1.0})
    assert metrics.read(tmp_path / "metrics.jsonl") == [
        {"stage": "pair", "step": 1, "loss": None, "other": 1.0}
    ]


def test_line_is_on_disk_before_the_writer_is_closed(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    writer.scalars("pair", 1, {"loss": 1.0})
    assert len(metrics.read(tmp_path / "metrics.jsonl")) == 1
    writer.close()


def test_image_is_read_back_from_tensorboard(tmp_path):
    from io import BytesIO

    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.image("pair", 5, "pairs", image)
    (value,) = [v for event in events(tmp_path, "pair") for v in event.summary.value]
    assert value.tag == "pairs"
    np.testing.assert_array_equal(Image.open(BytesIO(value.image.encoded_image_string)), image)


FULL_DISK = """
import pathlib, resource, signal, sys
import numpy as np
from daaa_jax.runtime import exit_codes
from daaa_jax.runtime.metrics import MetricWriter

def log():
    draws = np.random.default_rng(0)
    folder = pathlib.Path(sys.argv[1])
    with MetricWriter(folder / "metrics.jsonl", folder / "tensorboard") as writer:
        for step in range(2000):
            if sys.argv[2] == "image":
                writer.image("pair", step, "image", draws.integers(0, 256, (64, 64, 3), np.uint8))
            else:
                writer.scalars("pair", step, {})

def run():
    try:
        log()
    except OSError as error:
        # What a full disk raises; a limit of the size of a file takes its place here.
        assert error.errno == 27 and error.strerror == "File too large", error
        error.errno = 28
        raise

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
exit_codes.run(run)
"""


@pytest.mark.parametrize(("kind", "file"), [("image", "tensorboard"), ("number", "metrics.jsonl")])
def test_metrics_that_cannot_be_written_end_the_program_with_one_line(kind, file, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / file}"), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_image_of_another_type_is_refused(tmp_path):
    with (
        MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer,
        pytest.raises(ValueError, match=r"pairs\b.*float32\[8, 8, 3\]"),
    ):
        writer.image("pair", 5, "pairs", np.zeros((8, 8, 3), np.float32))


def test_resumed_stage_drops_its_own_lines_past_the_restored_step(tmp_path):
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.scalars("source", 100, {"loss": 9.0})
        for step in (1, 2, 3):
            writer.scalars("pair", step, {"loss": float(step)})
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.drop_after("pair", 2)
        assert [(x["stage"], x["step"]) for x in metrics.read(tmp_path / "metrics.jsonl")] == [
            ("source", 100),
            ("pair", 1),
            ("pair", 2),
        ]
        writer.scalars("pair", 3, {"loss": 30.0})
    assert metrics.read(tmp_path / "metrics.jsonl")[-1] == {
        "stage": "pair",
        "step": 3,
        "loss": 30.0,
    }
    (start,) = [e for e in events(tmp_path, "pair") if e.HasField("session_log")]
    assert start.step == 3  # TensorBoard hides what older files hold at or past it


def test_nothing_to_drop_leaves_the_file_as_it_was(tmp_path):
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.scalars("pair", 1, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.drop_after("pair", 1)
        writer.drop_after("adapt", 0)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before
    assert len(metrics.read(tmp_path / "metrics.jsonl")) == 1


def test_stage_started_again_drops_all_its_lines(tmp_path):
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.scalars("pair", 0, {"loss": 1.0})
        writer.scalars("pair", 1, {"loss": 1.0})
        writer.drop_after("pair", -1)
    assert metrics.read(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("torn", ['{"stage": "pair", "st', '{"stage": "pair", "step": 2}', "\x00"])
def test_torn_last_line_is_removed_before_the_next_is_written(tmp_path, torn):
    whole = '{"stage": "pair", "step": 1, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + torn)
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.drop_after("pair", 1)
        writer.scalars("pair", 2, {"loss": 2.0})
    assert [line["step"] for line in metrics.read(tmp_path / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "metrics.jsonl").read_text().startswith(whole)


def test_runtime_is_imported_without_what_only_some_commands_need():
    program = """
import sys
from daaa_jax.runtime import checkpoints, compilation, mesh, metrics, progress
print([name for name in ("orbax", "tensorboardX", "tqdm", "tensorflow") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr
