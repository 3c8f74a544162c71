"""Placing arrays on one device, on eight, and on those of two processes."""

import collections
import re

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daaa_jax.errors import UserError
from daaa_jax.runtime import mesh as meshes

TWO_PROCESSES = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
from daaa_jax.errors import UserError
from daaa_jax.runtime import checkpoints, distributed, files, mesh as meshes
from daaa_jax.runtime.metrics import MetricWriter

address, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
distributed.start(address, 2, index)
assert distributed.started() and distributed.is_first() == (index == 0)
mesh = meshes.data_mesh()
meshes.connect(mesh)
assert mesh.size == 4 and len(mesh.local_devices) == 2

batch = np.arange(24, dtype=np.float32).reshape(8, 3)
sharded = meshes.shard_batch(batch, mesh)
assert sharded.shape == (8, 3)
for shard in sharded.addressable_shards:
    np.testing.assert_array_equal(np.asarray(shard.data), batch[shard.index])
rows = {shard.index[0].start for shard in sharded.addressable_shards}
assert rows == ({0, 2} if index == 0 else {4, 6}), rows
assert float(jax.jit(jnp.sum)(sharded)) == batch.sum()

share = meshes.local_share(mesh)
np.testing.assert_array_equal(share(batch), batch[4 * index : 4 * index + 4])
read = meshes.assemble_batch({"rows": share(batch)}, mesh)["rows"]
assert read.sharding == sharded.sharding and read.shape == (8, 3)
np.testing.assert_array_equal(meshes.to_host(read), batch)
assert files.checksum(read) == files.checksum(batch)

split = meshes.data_mesh(shards=4)
wide = {"w": np.arange(8192).reshape(2, 4096), "b": np.zeros(3)}
places = meshes.state_shardings(wide, split)
assert tuple(places["w"].spec) == (None, "shards")
assert places["b"].is_fully_replicated
placed = meshes.place(wide, places)
assert [part.data.shape for part in placed["w"].addressable_shards] == [(2, 1024)] * 2
np.testing.assert_array_equal(meshes.to_host(placed)["w"], wide["w"])

assert distributed.of_first(lambda: f"found by {index}") == "found by 0"
distributed.check_shared(Path(folder))
try:
    distributed.check_shared(Path(folder) / str(index))  # a different folder in each process
    seen = True
except UserError as error:
    assert "--workdir" in str(error), error
    seen = False
assert seen == (index == 0), seen
files.write_json(Path(folder) / "by_first.json", index)
distributed.barrier("written")
assert files.read_json(Path(folder) / "by_first.json") == 0

state = meshes.replicate({"w": batch, "key": jax.random.key(3)}, mesh)
with checkpoints.Checkpoints(folder + "/checkpoints") as kept:
    kept.save(5, state, {"round": 1})
    places = meshes.replicated(mesh)
    restored, loop = kept.restore(jax.jit(lambda: state, out_shardings=places).eval_shape())
assert loop == {"round": 1}
np.testing.assert_array_equal(np.asarray(restored["w"].addressable_data(0)), batch)
draw = jax.jit(lambda key: jax.random.bits(key, (3,)))(restored["key"])
np.testing.assert_array_equal(
    np.asarray(draw.addressable_data(0)), np.asarray(jax.random.bits(jax.random.key(3), (3,)))
)
with MetricWriter(Path(folder) / "metrics.jsonl", Path(folder) / "tensorboard") as writer:
    writer.drop_after("pair", 0)
    writer.scalars("pair", 1, {"loss": 2.0})
distributed.barrier("done")
"""


@pytest.fixture(params=[1, 8])
def mesh(request):
    return meshes.data_mesh(jax.devices()[: request.param])


def test_mesh_takes_all_devices_by_default():
    mesh = meshes.data_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.size == jax.device_count() == 8
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,)


def test_batch_is_split_by_rows_in_order(mesh):
    batch = {"images": np.arange(48, dtype=np.uint8).reshape(16, 3), "labels": np.arange(16)}
    sharded = meshes.shard_batch(batch, mesh)
    assert sharded["images"].sharding == meshes.batch_sharded(mesh)
    np.testing.assert_array_equal(sharded["images"], batch["images"])
    first = sharded["images"].addressable_shards[0]
    np.testing.assert_array_equal(first.data, batch["images"][: 16 // mesh.size])


def test_replicated_tree_lies_whole_on_every_device(mesh):
    tree = {"w": np.ones((3, 2)), "key": jax.random.key(1), "count": jnp.int32(4)}
    copies = meshes.replicate(tree, mesh)
    assert len(copies["w"].addressable_shards) == mesh.size
    assert all(shard.data.shape == (3, 2) for shard in copies["w"].addressable_shards)
    assert copies["key"].sharding.is_fully_replicated
    np.testing.assert_array_equal(
        jax.random.key_data(copies["key"]), jax.random.key_data(tree["key"])
    )


def test_donating_a_replicated_tree_leaves_the_original_and_its_other_copies(mesh):
    original = meshes.replicate({"w": np.zeros(1000, np.float32)}, mesh)
    source, target = meshes.replicate((original, original), mesh)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    np.testing.assert_array_equal(step(target)["w"], 1)
    np.testing.assert_array_equal(source["w"], 0)
    np.testing.assert_array_equal(original["w"], 0)


def test_batch_changed_by_the_caller_afterwards_is_not_changed_on_the_device(mesh):
    batch = np.zeros((8, 256), np.float32)
    sharded = meshes.shard_batch(batch, mesh)
    batch[:] = 1
    np.testing.assert_array_equal(sharded, 0)


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_shards_make_a_second_axis_and_batches_are_split_over_both(shards):
    mesh = meshes.data_mesh(shards=shards)
    assert mesh.shape == ({"data": 8} if shards == 1 else {"data": 8 // shards, "shards": shards})
    batch = np.arange(16)
    np.testing.assert_array_equal(meshes.shard_batch(batch, mesh), batch)
    assert len(meshes.shard_batch(batch, mesh).addressable_shards[0].data) == 2
    assert meshes.local_share(mesh)(batch).tolist() == batch.tolist()


def test_shards_that_do_not_divide_the_devices_name_those_that_do():
    with pytest.raises(UserError, match=r"run\.parameter_shards=3\b.*\b1, 2, 4, 8\b"):
        meshes.data_mesh(shards=3)


def test_mean_over_eight_devices_equals_the_mean_over_one():
    batch = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    means = [
        jax.jit(lambda x: x.mean(0))(meshes.shard_batch(batch, meshes.data_mesh(devices)))
        for devices in (jax.devices()[:1], jax.devices())
    ]
    np.testing.assert_allclose(means[0], means[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("size", "nearest"), [(100, (96, 104)), (3, (8,)), (0, (8,)), (-8, (8,))])
def test_batch_size_that_does_not_divide_names_the_setting_and_the_nearest_sizes(size, nearest):
    with pytest.raises(UserError) as caught:
        meshes.check_batch_size("adapt.batch_size", size, meshes.data_mesh())
    message = str(caught.value)
    assert "adapt.batch_size" in message
    # The size, the number of devices, and the sizes that work.
    numbers = collections.Counter(map(int, re.findall(r"-?\d+", message)))
    assert numbers == collections.Counter([size, 8, *nearest])


def test_batch_size_that_divides_is_accepted(mesh):
    meshes.check_batch_size("adapt.batch_size", 128, mesh)


def test_two_processes_hold_their_rows_and_write_one_checkpoint_and_one_log(tmp_path):
    for index in range(2):
        (tmp_path / str(index)).mkdir()
    commands.two_processes(TWO_PROCESSES, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
