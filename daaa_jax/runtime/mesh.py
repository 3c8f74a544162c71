"""Placement of arrays on devices: batches are split, states are replicated or sharded."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from daaa_jax.errors import UserError, counted

DATA, SHARDS = "data", "shards"
SPLIT_FROM = 1024  # elements; smaller arrays are not worth the communication


def data_mesh(devices: Sequence[jax.Device] | None = None, shards: int = 1) -> Mesh:
    """The device mesh of every stage.

    Args:
      devices: the devices to use, by default all, including those of other processes.
      shards: number of devices that share one copy of a state (as in FSDP and ZeRO).

    Returns:
      A mesh with the axis `data`, and a second axis `shards` unless `shards` is 1. Devices of one
      process are neighbours, so that its rows of a batch are contiguous.

    Raises:
      UserError: if `shards` does not divide the number of devices; names the divisors.
    """
    devices = jax.devices() if devices is None else devices
    ordered = np.array(sorted(devices, key=lambda device: (device.process_index, device.id)))
    if shards < 1 or len(ordered) % shards:
        fit = [str(n) for n in range(1, len(ordered) + 1) if len(ordered) % n == 0]
        raise UserError(
            f"run.parameter_shards={shards} does not split {counted(len(ordered), 'device')} "
            f"evenly: choose {', '.join(fit)}"
        )
    # jax.make_mesh would default to explicit axis types, which put shardings into array types.
    if shards == 1:
        return Mesh(ordered, (DATA,), axis_types=(AxisType.Auto,))
    return Mesh(ordered.reshape(-1, shards), (DATA, SHARDS), axis_types=(AxisType.Auto,) * 2)


def connect(mesh: Mesh) -> None:
    """Connects every group of devices that communicates, before the processes get out of step.

    Call it just after JAX has exchanged the lists of devices. On CPUs, Gloo allows 30 seconds for
    the first connection of a group, and processes that load data or compile can be further apart;
    later it waits far longer.

    Args:
      mesh: if all its devices belong to this process, nothing happens.
    """
    if replicated(mesh).is_fully_addressable:
        return
    # JAX's barriers and broadcasts sum over a group with one device of each process.
    multihost_utils.sync_global_devices("connected")
    # Not a set, whose order differs between processes. With one axis both groups are the same.
    for axes in dict.fromkeys([mesh.axis_names, *((name,) for name in mesh.axis_names)]):
        size = math.prod(mesh.shape[name] for name in axes)
        ones = place(np.ones(size), NamedSharding(mesh, PartitionSpec(axes)))
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated(mesh))(ones))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Shardings of a state: replicated, or split over the axis `shards`.

    Args:
      shapes: a tree of arrays or of `jax.ShapeDtypeStruct`.
      mesh: without the axis `shards`, every array is replicated.

    Returns:
      The tree of shardings. An array is split along its largest dimension that `shards` divides.
    """
    shards = mesh.shape.get(SHARDS, 1)

    def sharding(leaf) -> NamedSharding:
        sides = [side if side % shards == 0 else 0 for side in leaf.shape]
        if shards == 1 or leaf.size < SPLIT_FROM or not any(sides):
            return replicated(mesh)
        largest = sides.index(max(sides))
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, SHARDS))

    return jax.tree.map(sharding, shapes)


def check_batch_size(name: str, size: int, mesh: Mesh) -> None:
    """Checks that a batch splits evenly over the mesh.

    Args:
      name: the setting that holds the size, for the message.
      size: the global batch size.
      mesh: its number of devices must divide `size`.

    Raises:
      UserError: if it does not; names the nearest valid sizes.
    """
    devices = mesh.size
    if size > 0 and size % devices == 0:
        return
    below = max(size, 0) // devices * devices
    nearest = f"{below} or {below + devices}" if below else f"{devices}"
    raise UserError(
        f"{name} is {size}, which does not split evenly over {counted(devices, 'device')}: "
        f"set it to {nearest}"
    )


def place(tree: Any, shardings: Any) -> Any:
    """Places every array of a tree by its sharding.

    Args:
      tree: arrays (NumPy or JAX, including typed PRNG keys), the same on each process.
      shardings: one for each array.

    Returns:
      The tree on the devices. It shares no buffer with `tree`, so either may be donated.
    """
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        # Without may_alias=False a state could share its buffers with the caller's arrays, and
        # donating the one would delete the other. On a CPU it has no effect on NumPy arrays.
        tree = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, tree)
        return jax.device_put(tree, shardings, may_alias=False)
    return jax.tree.map(_place_on_many_processes, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array of a tree to every device of the mesh, see `place`."""
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first dimension of every array of a tree over the devices of the mesh.

    Args:
      tree: the *global* batch, arrays `[B, ...]`, the same on each process; a process transfers
        only the rows of its own devices.
      mesh: its size must divide each B.

    Returns:
      The tree on the mesh, global shapes unchanged.
    """
    return place(tree, jax.tree.map(lambda _: batch_sharded(mesh), tree))


def shard_batches(tree: Any, mesh: Mesh) -> Any:
    """`shard_batch` for several batches stacked along a first axis, arrays `[n, B, ...]`."""
    sharding = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))
    return place(tree, jax.tree.map(lambda _: sharding, tree))


def local_share(mesh: Mesh) -> Callable[[np.ndarray], np.ndarray]:
    """A function that selects this process's rows of an array `[B, ...]`; workers can pickle it."""
    first = [device.process_index for device in mesh.devices.flat].index(jax.process_index())
    last = first + len(mesh.local_devices)
    return functools.partial(_parts, first, last, mesh.size)


def _parts(first: int, last: int, of: int, rows: np.ndarray) -> np.ndarray:
    """Parts `first` to `last - 1` of `of` equal parts."""
    each = len(rows) // of
    return rows[first * each : last * each]


def assemble_batch(tree: Any, mesh: Mesh) -> Any:
    """Assembles global arrays from the rows that each process has read.

    Args:
      tree: this process's rows of a batch, as selected by `local_share`.
      mesh: the mesh of `local_share`.

    Returns:
      The tree on the mesh, arrays `[B, ...]` whose first dimension is split over the devices.
    """
    sharding = batch_sharded(mesh)
    if sharding.is_fully_addressable:
        return shard_batch(tree, mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(rows)),
        tree,
    )


def to_host(tree: Any) -> Any:
    """Every array in full, as a NumPy array; all processes must call it together.

    Args:
      tree: arrays, possibly split over processes; typed PRNG keys are returned as their data.
    """

    def whole(leaf):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def _place_on_many_processes(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place_on_many_processes(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
