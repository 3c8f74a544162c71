"""Stage `translate`: translates every image once with its generator, into files of records."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from daaa_jax.data import records
from daaa_jax.data.augment import decode, encode
from daaa_jax.data.images import Images
from daaa_jax.data.types import ImageArray
from daaa_jax.errors import UserError
from daaa_jax.runtime import device_memory, distributed, files
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.preemption import Preempted
from daaa_jax.runtime.progress import Progress
from daaa_jax.training.context import Context

MANIFEST = "manifest.json"


def direction(origin: str, domains: Collection[str]) -> str:
    """The name of the generator, of two, that translates images of the domain `origin`."""
    return "a_to_b" if origin == min(domains) else "b_to_a"


def run(
    settings: ConfigDict,
    generator: nn.Module,
    params: Mapping[str, Any],
    images: ImageArray,
    direction: str,
    context: Context,
) -> int:
    """Translates the images of one domain part by part, or resumes it.

    Each of several processes translates some of the parts on its own devices. When all are done,
    the manifest marks the direction as complete.

    Args:
      settings: `config.translate`.
      params: its parameters for this direction.
      images: the originals, uint8 `[N,H,W,3]`.
      direction: names the folder, for instance `mnist_to_mnist_m`.

    Returns:
      The number of images that were left to translate, by all processes.

    Raises:
      Preempted: if the run is preempted; finished parts are kept.
    """
    folder = context.workdir.translations(direction)
    manifest = _start(folder, settings.part_size, direction, images, params)
    mesh = meshes.data_mesh(context.mesh.local_devices)
    translate = jax.jit(
        lambda params, batch: encode(generator.apply({"params": params}, decode(batch))),
        out_shardings=meshes.replicated(mesh),
    )
    params = meshes.replicate(params, mesh)
    batch_size = settings.batch_size * mesh.size // context.mesh.size
    # By number, so that no process looks for the files of another: on a shared file system a new
    # file may seem to be missing for a minute.
    mine = manifest["parts"][jax.process_index() :: jax.process_count()]
    missing = [part for part in mine if not (folder / part["file"]).exists()]
    # All processes go on at the same time: images translated by all for each of this process.
    others = len(images) / max(sum(part["count"] for part in mine), 1)
    left = others * sum(part["count"] for part in missing)
    done = len(images) - left
    with (
        device_memory.enough_memory("stage translate", "translate.batch_size"),
        Progress(f"translate {direction}", len(images), done) as progress,
    ):
        for part in missing:
            if context.notice.heard():
                raise Preempted(f"{direction}: {round(done)} of {len(images)} images translated")
            rows = np.arange(part["first"], part["first"] + part["count"])
            made = _translated(translate, params, images, rows, batch_size, mesh)
            records.write(folder / part["file"], made)
            done += others * part["count"]
            progress.update(min(round(done), len(images)), {})
    distributed.barrier(f"{direction} translated")
    _finish(folder, manifest)
    distributed.barrier(f"{direction} finished")  # others read the manifest that the first writes
    return round(left)


def _start(
    folder: Path, part_size: int, direction: str, images: ImageArray, params: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the manifest of a direction, and removes parts of other images or generators."""
    manifest = {
        "direction": direction,
        "count": len(images),
        "shape": list(images.shape[1:]),
        "order": "row i is the translation of original i",
        "originals_sha256": files.checksum(images),
        "generator_sha256": files.checksum(params),
        "parts": [
            {
                "file": f"part-{number:05d}{records.SUFFIX}",
                "first": first,
                "count": min(part_size, len(images) - first),
            }
            for number, first in enumerate(range(0, len(images), part_size))
        ],
    }
    if distributed.is_first():
        unfinished = {"complete": False}  # whether it is does not matter here
        if files.read_json_or(folder / MANIFEST, {}) | unfinished != manifest | unfinished:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob("part-*"):
                stale.unlink()
            files.write_json(folder / MANIFEST, manifest | unfinished)
        records.drop_halves(folder)
    distributed.barrier(f"{direction} started")
    return manifest


def _finish(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Marks a direction as complete, if all parts are there."""
    if distributed.is_first():
        absent = [p["file"] for p in manifest["parts"] if not (folder / p["file"]).exists()]
        if absent:
            raise UserError(
                f"{folder} lacks {absent[0]}, which another host has written: make sure that all "
                "hosts share it, and rerun the same command to resume"
            )
    files.write_json(folder / MANIFEST, {**manifest, "complete": True})


def read(folder: Path) -> Images:
    """The translations of a finished direction, in the order of the originals, read on demand.

    Raises:
      UserError: if the manifest says that the direction is not complete, or a part is missing.
    """
    manifest = files.read_json_or(folder / MANIFEST, {})
    remedy = f"remove {folder.parent} and run the stage translate again"
    if not manifest.get("complete"):
        raise UserError(f"{folder} holds no complete translation: {remedy}")
    # The generator and the originals determine the translations.
    identity = files.settings_hash(manifest)
    parts = [(folder / part["file"], part["count"]) for part in manifest["parts"]]
    try:
        return records.read(parts, manifest["shape"], identity)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def is_whole(folder: Path) -> bool:
    """Whether a direction is finished and all of its parts are still there; reads none.

    Raises:
      UserError: if the manifest is damaged.
    """
    manifest = files.read_json_or(folder / MANIFEST, {})
    return manifest.get("complete", False) and all(
        (folder / part["file"]).is_file() for part in manifest["parts"]
    )


def _translated(translate, params, images, rows, batch_size, mesh) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), batch_size):
        chosen = rows[first : first + batch_size]
        padded = np.pad(chosen, (0, batch_size - len(chosen)), mode="edge")
        batch = meshes.shard_batch(images[padded], mesh)
        yield from jax.device_get(translate(params, batch))[: len(chosen)]
