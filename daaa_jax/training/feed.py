"""How images reach a step: all on the devices from the start, or streamed batch by batch."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax.data.images import Images
from daaa_jax.runtime import device_memory, distributed
from daaa_jax.runtime import mesh as meshes

# Of a device's memory, what images may take; the rest is for networks and activations. On a CPU
# there are up to three copies of them while they are put in place.
_SHARE, _SHARE_ON_CPU = 0.25, 0.1
_MIB = 2**20
_AHEAD = 4  # batches made before they are asked for

Batch = tuple[Any, ...]


def take(images: Array | None, rows: Array) -> Array:
    """The images of a batch, inside the step.

    Args:
      images: all of them, or None where they are streamed.
      rows: those in the batch, int32 `[B]`; where they are streamed, the images themselves.

    Returns:
      uint8 `[B,H,W,3]`.
    """
    return rows if images is None else images[rows]


class Feed:
    """The arguments of a stage's step after its state: sets of images, then the batch."""

    def __init__(
        self,
        images: Sequence[np.ndarray | Images],
        batch_at: Callable[[int], Batch],
        fill: Callable[[Sequence[Images], Batch], Batch],
        *,
        steps: int,
        mesh: Mesh,
        settings: ConfigDict,
    ):
        """Copies the images to every device where they fit; else streams them by Grain.

        Args:
          images: sets of images, each `[N,H,W,3]`.
          batch_at: the batch of a step, counted from 0, arrays in a tuple, with rows of the images.
          fill: the same with images in place of their rows. Both must be picklable where
            `settings.workers` is not 0.
          steps: the number of steps in all.
          mesh: the devices.
          settings: `config.run`; `resident_mib` and `workers` are read.
        """
        self._images = [Images(part) for part in images]
        self._batch_at, self._fill = batch_at, fill
        self._steps, self._mesh, self._settings = steps, mesh, settings
        needed = sum(part.nbytes for part in self._images)
        # Hosts may have more or less memory.
        self._streams = bool(
            distributed.of_first(lambda: "yes" if needed > _room(mesh, settings) else "")
        )
        self._stored = (None,) * len(self._images)
        if self._streams:
            print(f"{needed / _MIB:.0f} MiB of images are streamed to the devices", flush=True)
        else:
            with device_memory.enough_memory("images", "run.resident_mib"):
                self._stored = meshes.replicate(tuple(np.asarray(i) for i in self._images), mesh)
        self._batches, self._next = None, -1

    def at(self, step: int) -> tuple[Any, ...]:
        """The arguments of update `step`, on the mesh: a function of `step` alone.

        Where images are streamed, each process reads those of its own devices.
        """
        if not self._streams:
            return (*self._stored, *meshes.shard_batch(self._batch_at(step), self._mesh))
        if step != self._next:
            self._batches, self._next = iter(self._dataset(step)), step
        batch = next(self._batches)
        self._next += 1
        return (*self._stored, *meshes.assemble_batch(batch, self._mesh))

    def _dataset(self, start: int):
        # Imported here, as it takes most of a second that runs without it spare.
        import grain

        share = meshes.local_share(self._mesh)
        make = _Make(self._batch_at, self._fill, self._images, share)
        dataset = grain.MapDataset.range(start, self._steps).map(make)
        workers = self._settings.workers
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain asks for one of its own
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_AHEAD)
            return dataset.to_iter_dataset().mp_prefetch(options, _end_with_parent)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=_AHEAD)
        return dataset.to_iter_dataset(options)


class _Make:
    """From a step's number to this process's share of its batch, with images, in a worker."""

    def __init__(self, batch_at, fill, images, share):
        self.batch_at, self.fill, self.images, self.share = batch_at, fill, images, share

    def __call__(self, step: int) -> Batch:
        return self.fill(self.images, jax.tree.map(self.share, self.batch_at(int(step))))


def _end_with_parent(*_: int) -> None:
    """In a worker: ends it when the process that it works for is gone, which may not tell it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _room(mesh: Mesh, settings: ConfigDict) -> float:
    """Bytes that images may take on each device."""
    if settings.resident_mib >= 0:
        return settings.resident_mib * _MIB
    limits = [(d.memory_stats() or {}).get("bytes_limit") for d in mesh.local_devices]
    if all(limits):
        return _SHARE * min(limits)
    # CPU devices share the memory of their host.
    return _SHARE_ON_CPU * _host_memory() / jax.local_device_count()


def _host_memory() -> int:
    """Bytes of this machine, or of the container that the process is confined to."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine
