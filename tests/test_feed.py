"""Images on the devices or streamed: a step sees the same, at any step, with any workers."""

import functools
import pickle
import subprocess
import sys
import time
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
from absl import flags
from tiny import make_config, make_context, make_images, make_labelled

from daaa_jax import source
from daaa_jax.data.batches import IndexStream, Rows
from daaa_jax.data.images import Images
from daaa_jax.models import DigitNetwork
from daaa_jax.runtime import mesh
from daaa_jax.training.feed import Feed

FIRST, SECOND = make_images(12, seed=1), make_images(9, seed=2)
STEPS = 7


def rows(streams, step):
    return tuple(Rows(stream.at(step), number) for number, stream in enumerate(streams))


def make_feed(images=(FIRST, SECOND), **settings):
    streams = [IndexStream(len(part), 4, seed=0, name=str(i)) for i, part in enumerate(images)]
    config = make_config({f"run.{name}": value for name, value in settings.items()})
    return Feed(
        images,
        functools.partial(rows, streams),
        steps=STEPS,
        mesh=mesh.data_mesh(jax.devices()[:2]),
        settings=config.run,
    )


def seen(feed, step):
    _, (first, second) = feed.bind(lambda state, batch: (state, batch))(None, *feed.at(step))
    return np.asarray(first), np.asarray(second)


def test_streamed_batches_are_those_of_resident_images():
    resident, streamed = make_feed(), make_feed(resident_mib=0)
    assert len(streamed.at(0)) == 1 and len(resident.at(0)) == 2
    for step in range(STEPS):
        for ours, theirs in zip(seen(streamed, step), seen(resident, step), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_streaming_starts_at_any_step():
    resident, streamed = make_feed(), make_feed(resident_mib=0)
    for step in (4, 5, 2, 3, 6):
        np.testing.assert_array_equal(seen(streamed, step)[1], seen(resident, step)[1])


def test_worker_processes_make_the_same_batches(tmp_path):
    flags.FLAGS.unparse_flags()  # as in a command that has none of absl's
    path = tmp_path / "first.npy"
    np.save(path, FIRST)
    images = (np.load(path, mmap_mode="r"), SECOND)
    resident, streamed = make_feed(images), make_feed(images, resident_mib=0, workers=2)
    for step in range(STEPS):
        for ours, theirs in zip(seen(streamed, step), seen(resident, step), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_worker_ends_with_the_process_that_it_works_for():
    """A process that has lost another ends at once, without ending its workers."""
    script = (
        "import os, subprocess, sys\n"
        "work = 'import time; from daaa_jax.training import feed; feed._end_with_parent(); '\n"
        "work += 'print(1, flush=True); time.sleep(60)'\n"
        "worker = subprocess.Popen([sys.executable, '-c', work], stdout=subprocess.PIPE)\n"
        "worker.stdout.readline()\n"
        "print(worker.pid, flush=True)\n"
        "os._exit(75)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=commands.ROOT, capture_output=True, timeout=100
    )
    assert done.returncode == 75, done.stderr
    place = Path(f"/proc/{int(done.stdout)}/stat")
    end = time.monotonic() + 20
    while place.exists() and place.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.1)


def test_streamed_batch_is_split_over_the_devices():
    (batch, _), *_ = make_feed(resident_mib=0).at(0)
    assert [shard.data.shape[0] for shard in batch.addressable_shards] == [2, 2]


def test_stage_fed_by_stream_trains_as_one_with_resident_images(tmp_path):
    data, model = make_labelled(24), DigitNetwork(num_classes=4, widths=(4, 4, 4))
    trained = []
    for mib in (-1, 0):
        config = make_config({"run.resident_mib": mib})
        with make_context(tmp_path / str(mib), config) as context:
            variables, _ = source.run(config, model, data, lambda _: {}, context)
        trained.append(jax.tree.leaves(variables))
    for ours, theirs in zip(*trained, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


# Images


def test_parts_read_like_one_array():
    images, whole = Images(FIRST, SECOND), np.concatenate([FIRST, SECOND])
    assert len(images) == 21 and images.shape == whole.shape and images.nbytes == whole.nbytes
    chosen = np.array([20, 0, 11, 12, 12])
    np.testing.assert_array_equal(images[chosen], whole[chosen])
    np.testing.assert_array_equal(images[10:14], whole[10:14])
    np.testing.assert_array_equal(Images(images, FIRST)[-2:], FIRST[-2:])
    np.testing.assert_array_equal(images, whole)


def test_images_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(16, 16, 3\).*\(32, 32, 3\)"):
        Images(FIRST, make_images(3, size=16))


def test_memory_maps_are_pickled_by_their_file_and_slices_by_their_content(tmp_path):
    np.save(tmp_path / "images.npy", np.concatenate([FIRST] * 50))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    content = pickle.dumps(Images(mapped))
    assert len(content) < 2000
    np.testing.assert_array_equal(pickle.loads(content), mapped)
    part = Images(mapped[3:5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)), FIRST[3:5])
