"""One mesh axis, `data`: batches are split over the devices, everything else is copied to each."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from daaa_jax.errors import UserError

AXIS = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that every stage runs on.

    Args:
      devices: the devices to use, by default all of them, those of other processes too.

    Returns:
      A mesh with the single axis `data`.
    """
    devices = jax.devices() if devices is None else devices
    # jax.make_mesh would default to explicit axis types, which put shardings into array types.
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that lies whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


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


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array of a tree to every device of the mesh.

    Args:
      tree: arrays (of NumPy or JAX, typed PRNG keys too), the same on each process.
      mesh: the mesh.

    Returns:
      The tree on the mesh. It shares no buffer with `tree`, so either may be donated.
    """
    return _place(tree, replicated(mesh))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first dimension of every array of a tree over the devices of the mesh.

    Args:
      tree: the *global* batch, arrays `[B, ...]`, the same on each process; a process moves no more
        than the rows that its own devices hold.
      mesh: the mesh, whose size divides each B.

    Returns:
      The tree on the mesh, global shapes unchanged.
    """
    return _place(tree, batch_sharded(mesh))


def _place(tree: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        # Without may_alias=False a state could share its buffers with the caller's arrays, and
        # donating the one would delete the other. On a CPU it does not hold for NumPy's arrays.
        tree = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, tree)
        return jax.device_put(tree, sharding, may_alias=False)
    return jax.tree.map(lambda leaf: _place_on_many_processes(leaf, sharding), tree)


def _place_on_many_processes(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place_on_many_processes(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
