"""Stage `translate`: every image through its generator, once, to files of records."""

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
from daaa_jax.data.records import Records
from daaa_jax.errors import UserError
from daaa_jax.runtime import device_memory, distributed, files
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.preemption import Preempted
from daaa_jax.runtime.progress import Progress
from daaa_jax.training.context import Context

MANIFEST = "manifest.json"


def direction(origin: str, domains: Collection[str]) -> str:
    """What the generator is called that translates images of the domain `origin` of two."""
    return "a_to_b" if origin == min(domains) else "b_to_a"


def run(
    settings: ConfigDict,
    generator: nn.Module,
    params: Mapping[str, Any],
    images: np.ndarray | Images | Records,
    direction: str,
    context: Context,
) -> None:
    """Translates the images of one domain, or resumes it, part by part.

    Of several processes each makes its share of the parts, on its own devices; the manifest says
    that the direction is complete when all are done.

    Args:
      settings: `config.translate`.
      generator: the network.
      params: its parameters for this direction.
      images: the originals, uint8 `[N,H,W,3]`.
      direction: names the folder, for instance `mnist_to_mnist_m`.
      context: of the run.

    Raises:
      Preempted: if the run is preempted; what is finished is kept.
    """
    folder = context.workdir.translations(direction)
    manifest = _begin(folder, settings.part_size, direction, images, params)
    mesh = meshes.data_mesh(context.mesh.local_devices)
    translate = jax.jit(
        lambda params, batch: encode(generator.apply({"params": params}, decode(batch))),
        out_shardings=meshes.replicated(mesh),
    )
    params = meshes.replicate(params, mesh)
    batch_size = settings.batch_size * mesh.size // context.mesh.size
    # By number, and none looks for another's: a file system that hosts share may go on saying for
    # a minute that a file is missing.
    mine = manifest["parts"][jax.process_index() :: jax.process_count()]
    missing = [part for part in mine if not (folder / part["file"]).exists()]
    others = len(images) / max(sum(part["count"] for part in mine), 1)  # go on meanwhile
    done = len(images) - others * sum(part["count"] for part in missing)
    later = context.later.get("translate", 0.0)
    with (
        device_memory.enough_memory("stage translate", "translate.batch_size"),
        Progress(f"translate {direction}", len(images), done, later=later) as progress,
    ):
        for part in missing:
            if context.notice.heard():
                raise Preempted(
                    f"{direction}: {round(done)} of {len(images)} images are translated"
                )
            rows = np.arange(part["first"], part["first"] + part["count"])
            made = _translated(translate, params, images, rows, batch_size, mesh)
            records.write(folder / part["file"], made)
            done += others * part["count"]
            progress.update(min(round(done), len(images)), {})
    distributed.barrier(f"{direction} translated")
    _finish(folder, manifest)


def _begin(
    folder: Path, part_size: int, direction: str, images: Any, params: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a direction; parts of other images or generators are removed."""
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
        if not _is_same(folder, manifest):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob("part-*"):
                stale.unlink()
            files.write_json(folder / MANIFEST, manifest | {"complete": False})
        records.drop_halves(folder)
    distributed.barrier(f"{direction} begun")
    return manifest


def _finish(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Declares a direction complete, if all parts are there."""
    if distributed.is_first():
        absent = [p["file"] for p in manifest["parts"] if not (folder / p["file"]).exists()]
        if absent:
            raise UserError(
                f"{folder} lacks {absent[0]}, which another host has written: make sure that all "
                "hosts share it, and rerun the same command to resume"
            )
    files.write_json(folder / MANIFEST, {**manifest, "complete": True})


def read(folder: Path) -> Records:
    """The translations of a finished direction, in the originals' order; they stay on the disk.

    Raises:
      UserError: if the manifest says that the direction is not complete, or a part is missing.
    """
    manifest = _manifest(folder)
    if not manifest.get("complete"):
        raise UserError(
            f"{folder} holds no complete translation: remove {folder.parent} and run the stage "
            "translate again"
        )
    # The generator and the originals say what the translations are.
    identity = files.settings_hash(manifest)
    parts = [(folder / part["file"], part["count"]) for part in manifest["parts"]]
    made = Records(parts, manifest["shape"], identity)
    try:
        made.check()
    except UserError as error:
        raise UserError(
            f"{error}; remove {folder.parent} and run the stage translate again"
        ) from error
    return made


def is_whole(folder: Path) -> bool:
    """Whether a direction is finished and all of its parts are still there; reads none.

    Raises:
      UserError: if the manifest is damaged.
    """
    manifest = _manifest(folder)
    return manifest.get("complete", False) and all(
        (folder / part["file"]).is_file() for part in manifest["parts"]
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    return files.read_json(path) if path.exists() else {}


def _is_same(folder: Path, manifest: Mapping[str, Any]) -> bool:
    found = _manifest(folder)
    found.pop("complete", None)
    return found == manifest


def _translated(translate, params, images, rows, batch_size, mesh) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), batch_size):
        chosen = rows[first : first + batch_size]
        filled = np.pad(chosen, (0, batch_size - len(chosen)), mode="edge")
        batch = meshes.shard_batch(images[filled], mesh)
        yield from jax.device_get(translate(params, batch))[: len(chosen)]
