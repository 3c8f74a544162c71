"""Stage `translate`: every training image through its generator, once, to memory-mappable files."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from daaa_jax.data.augment import decode
from daaa_jax.data.images import Images
from daaa_jax.errors import UserError
from daaa_jax.runtime import markers
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.context import Context
from daaa_jax.runtime.progress import Progress

MANIFEST = "manifest.json"


def encode(images: Array) -> Array:
    """float32 images in [-1,1] as uint8, the inverse of `decode`."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def run(
    config: ConfigDict,
    generator: nn.Module,
    params: Mapping[str, Any],
    images: np.ndarray,
    direction: str,
    context: Context,
) -> None:
    """Translates the images of one domain, or goes on with it part by part.

    Args:
      config: the whole config; `translate` is read.
      generator: the network.
      params: its parameters for this direction.
      images: the originals, uint8 `[N,H,W,3]`.
      direction: names the folder, for instance `mnist_to_mnist_m`.
      context: the surroundings of the run.
    """
    settings, mesh = config.translate, context.mesh
    folder = context.workdir / "translate" / direction
    parts = [
        {
            "file": f"part-{number:05d}.npy",
            "first": first,
            "count": min(settings.part_size, len(images) - first),
        }
        for number, first in enumerate(range(0, len(images), settings.part_size))
    ]
    manifest = {
        "direction": direction,
        "count": len(images),
        "shape": list(images.shape[1:]),
        "order": "row i is the translation of original i",
        "originals_sha256": markers.checksum(images),
        "generator_sha256": markers.checksum(params),
        "parts": parts,
    }
    if not _is_same(folder, manifest):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("part-*"):
            stale.unlink()
        markers.write_json(folder / MANIFEST, manifest | {"complete": False})

    for half in folder.glob(".*.tmp"):  # of a killed run
        half.unlink()
    translate = jax.jit(
        lambda params, batch: encode(generator.apply({"params": params}, decode(batch))),
        out_shardings=meshes.replicated(mesh),
    )
    params = meshes.replicate(params, mesh)
    with Progress(f"translate {direction}", len(images)) as progress:
        for part in parts:
            path = folder / part["file"]
            if not path.exists():
                rows = images[part["first"] : part["first"] + part["count"]]
                _write(path, _translate_all(translate, params, rows, settings.batch_size, mesh))
            progress.update(part["first"] + part["count"], {})
    markers.write_json(folder / MANIFEST, manifest | {"complete": True})


def read(folder: Path) -> Images:
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
    parts = []
    for part in manifest["parts"]:
        path = folder / part["file"]
        expected = (part["count"], *manifest["shape"])
        try:
            rows = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            rows = np.empty(0)
        if rows.shape != expected:
            raise UserError(
                f"{path} should hold {part['count']} images of {manifest['shape']}: remove "
                f"{folder.parent} and run the stage translate again"
            )
        parts.append(rows)
    return Images(*parts)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    return markers.read_json(path) if path.exists() else {}


def _is_same(folder: Path, manifest: Mapping[str, Any]) -> bool:
    found = _manifest(folder)
    found.pop("complete", None)
    return found == manifest


def _translate_all(translate, params, images, batch_size, mesh) -> np.ndarray:
    result = []
    for first in range(0, len(images), batch_size):
        rows = np.arange(first, first + batch_size)
        batch = meshes.shard_batch(images[np.minimum(rows, len(images) - 1)], mesh)
        result.append(jax.device_get(translate(params, batch)))
    return np.concatenate(result)[: len(images)]


def _write(path: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    markers.write_bytes(path, content.getvalue())
