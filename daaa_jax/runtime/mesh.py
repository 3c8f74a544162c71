"""Which device holds what: batches are split over all, states copied to each, or split too."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from daaa_jax.errors import UserError

DATA, SHARDS = "data", "shards"
SPLIT_FROM = 1024  # numbers in an array; smaller ones are not worth a message


def data_mesh(devices: Sequence[jax.Device] | None = None, shards: int = 1) -> Mesh:
    """The mesh that every stage runs on.

    Args:
      devices: the devices to use, by default all of them, those of other processes too.
      shards: number of devices that hold one copy of a state together (as FSDP and ZeRO do).

    Returns:
      A mesh with the axis `data`, and where `shards` is not 1 a second one, `shards`. Devices of
      one process are neighbours, so that its rows of a batch are, too.

    Raises:
      UserError: if `shards` does not divide the number of devices; names what does.
    """
    devices = jax.devices() if devices is None else devices
    devices = np.array(sorted(devices, key=lambda device: (device.process_index, device.id)))
    if shards < 1 or len(devices) % shards:
        fit = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            f"run.parameter_shards={shards} does not split {len(devices)} devices evenly: choose "
            f"{', '.join(fit)}"
        )
    # jax.make_mesh would default to explicit axis types, which put shardings into array types.
    if shards == 1:
        return Mesh(devices, (DATA,), axis_types=(AxisType.Auto,))
    return Mesh(devices.reshape(-1, shards), (DATA, SHARDS), axis_types=(AxisType.Auto,) * 2)


def connect(mesh: Mesh) -> None:
    """Lets every group of devices that sums something meet, while the processes are together.

    They are together just after JAX has exchanged the lists of devices. On CPUs, Gloo gives the
    devices of a group 30 seconds to meet the first time, and processes that load data or compile
    can be further apart; later it waits far longer.

    Args:
      mesh: the mesh; if all its devices belong to this process, nothing happens.
    """
    if replicated(mesh).is_fully_addressable:
        return
    # JAX's own barriers and broadcasts sum over groups of one device of each process.
    multihost_utils.sync_global_devices("connected")
    # No set, whose order differs between processes. With one axis both are the same.
    for axes in dict.fromkeys([mesh.axis_names, *((name,) for name in mesh.axis_names)]):
        size = math.prod(mesh.shape[name] for name in axes)
        ones = place(np.ones(size), NamedSharding(mesh, PartitionSpec(axes)))
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated(mesh))(ones))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that lies whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Shardings of a state: whole on every device, or split over the axis `shards`.

    Args:
      shapes: a tree of arrays or of `jax.ShapeDtypeStruct`.
      mesh: the mesh.

    Returns:
      The tree of shardings. An array is split along the largest dimension that the axis divides.
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
    """Makes sure that a batch splits evenly over the mesh.

    Args:
      name: the setting that holds the size, for the message.
      size: the global batch size.
      mesh: the mesh.

    Raises:
      UserError: if it does not; names the nearest sizes that do.
    """
    devices = mesh.size
    if size > 0 and size % devices == 0:
        return
    below = max(size, 0) // devices * devices
    nearest = f"{below} or {below + devices}" if below else f"{devices}"
    raise UserError(
        f"{name} is {size}, which does not split evenly over {devices} device"
        f"{'s' if devices > 1 else ''}: set it to {nearest}"
    )


def place(tree: Any, shardings: Any) -> Any:
    """Puts every array of a tree where its sharding says.

    Args:
      tree: arrays (of NumPy or JAX, typed PRNG keys too), the same on each process.
      shardings: of each.

    Returns:
      The tree on the devices. It shares no buffer with `tree`, so either may be donated.
    """
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        # Without may_alias=False a state could share its buffers with the caller's arrays, and
        # donating the one would delete the other. On a CPU it does not hold for NumPy's arrays.
        tree = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, tree)
        return jax.device_put(tree, shardings, may_alias=False)
    return jax.tree.map(_place_on_many_processes, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array of a tree to every device of the mesh.

    Args:
      tree: as for `place`.
      mesh: the mesh.
    """
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first dimension of every array of a tree over the devices of the mesh.

    Args:
      tree: the *global* batch, arrays `[B, ...]`, the same on each process; a process moves no more
        than the rows that its own devices hold.
      mesh: the mesh, whose size divides each B.

    Returns:
      The tree on the mesh, global shapes unchanged.
    """
    return place(tree, jax.tree.map(lambda _: batch_sharded(mesh), tree))


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of a batch that this process's devices hold: parts `first` to `last` of `of`."""

    first: int
    last: int
    of: int

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Those of an array `[B, ...]` that is the same on each process; `of` divides B."""
        each = len(rows) // self.of
        return rows[self.first * each : self.last * each]


def local_share(mesh: Mesh) -> Share:
    """What of every batch this process has to read."""
    here = [device.process_index == jax.process_index() for device in mesh.devices.flat]
    return Share(here.index(True), len(here) - here[::-1].index(True), len(here))


def assemble_batch(tree: Any, mesh: Mesh) -> Any:
    """Makes global arrays of what each process has read.

    Args:
      tree: this process's rows, as `local_share` takes them of a batch.
      mesh: the mesh.

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
    """The whole of every array as NumPy's; all processes call it together.

    Args:
      tree: arrays, of which a process may hold a part only; typed PRNG keys come as their data.
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
