"""Feeds batches of images to a step, from device memory or streamed from the host."""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax.data.batches import gather
from daaa_jax.data.images import Images
from daaa_jax.data.types import ImageArray
from daaa_jax.runtime import device_memory, distributed
from daaa_jax.runtime import mesh as meshes

# Share of a device's memory for images; the rest is for networks and activations. On a CPU there
# are up to three copies of them while they are placed.
_SHARE, _SHARE_ON_CPU = 0.25, 0.1
_MIB = 2**20
_AHEAD = 4  # batches that are prefetched


class Feed:
    """Supplies a training step with batches of images.

    Images that fit in device memory are copied to every device and gathered inside the compiled
    step; larger datasets are gathered by workers and streamed.

    Attributes:
      steps: total number of steps.
      streams: whether images are streamed.
    """

    def __init__(
        self,
        image_sets: Sequence[ImageArray],
        batch_at: Callable[[int], Any],
        steps: int,
        mesh: Mesh,
        settings: ConfigDict,
    ):
        """Copies the images to every device if they fit; otherwise streams them with Grain.

        Args:
          image_sets: each `[N,H,W,3]`, uint8.
          batch_at: the batch of a step, counted from 0: a tree of NumPy arrays and `Rows`. Must be
            picklable unless `settings.workers` is 0.
          steps: total number of steps.
          settings: `config.run`; `resident_mib` and `workers` are read.
        """
        self._image_sets = [Images(part) for part in image_sets]
        self._batch_at, self.steps = batch_at, steps
        self._mesh, self._settings = mesh, settings
        needed = sum(part.nbytes for part in self._image_sets)
        # Process 0 decides for all, as hosts may have more or less memory.
        self.streams = bool(
            distributed.of_first(lambda: "yes" if needed > _room(mesh, settings) else "")
        )
        if self.streams:
            print(f"{needed / _MIB:.0f} MiB of images are streamed to the devices", flush=True)
        else:
            with device_memory.enough_memory("images", "run.resident_mib"):
                whole = tuple(np.asarray(part) for part in self._image_sets)
                self._resident = meshes.replicate(whole, mesh)
        self._batches: Iterator[Any] = iter(())
        self._next = -1  # the step of its next batch

    def bind(self, train_step: Callable) -> Callable:
        """Makes `(state, *arguments) -> (state, metrics)` of `(state, batch) -> (state, metrics)`.

        `arguments` are what `at` returns.
        """
        if self.streams:
            return train_step

        def step(state, resident, batch):
            return train_step(state, gather(resident, batch))

        return step

    def at(self, step: int) -> tuple[Any, ...]:
        """The arguments of update `step`, on the mesh; they depend on `step` alone.

        If images are streamed, each process reads those of its own devices.
        """
        if not self.streams:
            return self._resident, meshes.shard_batch(self._batch_at(step), self._mesh)
        if step != self._next:
            self._batches, self._next = iter(self._dataset(step)), step
        batch = next(self._batches)
        self._next += 1
        return (meshes.assemble_batch(batch, self._mesh),)

    def block_at(self, step: int, count: int) -> tuple[Any, ...]:
        """Like `at`, of `count` updates, stacked along a new first axis; not of streamed images."""
        batches = [self._batch_at(step + number) for number in range(count)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return self._resident, meshes.shard_batches(stacked, self._mesh)

    def _dataset(self, start: int):
        # Imported here, as it takes most of a second.
        import grain

        share = meshes.local_share(self._mesh)
        read = functools.partial(_read_batch, self._batch_at, self._image_sets, share)
        dataset = grain.MapDataset.range(start, self.steps).map(read)
        workers = self._settings.workers
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain reads a flag
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_AHEAD)
            return dataset.to_iter_dataset().mp_prefetch(options, _end_with_parent)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=_AHEAD)
        return dataset.to_iter_dataset(options)


def _read_batch(batch_at, image_sets, share, step: int) -> Any:
    """Reads this process's part of the batch of a step, with images, in a worker."""
    return gather(image_sets, jax.tree.map(share, batch_at(int(step))))


def _end_with_parent(*_: int) -> None:
    """Ends a worker when its parent process is gone, which sends no signal if it was killed."""
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
    if limit := device_memory.limit(mesh.local_devices):
        return _SHARE * limit
    # CPU devices share the memory of their host.
    return _SHARE_ON_CPU * _host_memory() / jax.local_device_count()


def _host_memory() -> int:
    """Memory of this machine, or the limit of the process's container, in bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine
