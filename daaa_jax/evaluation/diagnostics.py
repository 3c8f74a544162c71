"""Diagnostics for the report, measured once at the end of a run and stored in small files."""

import io
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict
from scipy.spatial.distance import cdist

from daaa_jax import attention
from daaa_jax.data.augment import crop_size, evaluation_views
from daaa_jax.data.types import ImageArray, LabelledImages, Task
from daaa_jax.evaluation import Evaluator, attention_of, spread
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import Variables
from daaa_jax.runtime import distributed, files
from daaa_jax.runtime import mesh as meshes

_EXAMPLES = 8  # columns of a picture
_LAYERS = 4  # whose attention maps are shown
_SEARCHED = 5000  # target images among which the nearest is searched
_COLOURED = 2000  # images of each set, evenly spread, whose colours are compared
_READ_AT_ONCE = 256  # images


def write(
    workdir: Workdir,
    *,
    model: nn.Module,
    networks: Mapping[str, Variables],
    task: Task,
    synthetic_target: ImageArray | None,
    evaluate: Evaluator,
    config: ConfigDict,
) -> None:
    """Measures and writes metrics and arrays; all processes must call it together.

    Args:
      networks: variables of `source` and `adapted`.
      task: both domains.
      synthetic_target: G_ST(x^S) of the source training images; None for a method without
        translations.
      evaluate: measures a network on some images.
      config: the whole config; `evaluate.audit_images`, `augment` and `adapt.layers` are read.
    """
    source, measured = task.source_train, task.evaluation
    metrics: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    shown = config.evaluate.audit_images
    domains = {"source": measured.source_test, "target": measured.target_test}

    def features_of(variables: Variables, data: LabelledImages) -> np.ndarray:
        return evaluate(variables, data, spread(len(data.labels), shown)).outputs.features

    seen = {
        name: {domain: features_of(variables, data) for domain, data in domains.items()}
        for name, variables in networks.items()
    }
    if synthetic_target is not None:
        translated = LabelledImages(synthetic_target, source.labels)
        metrics["translated"] = {
            name: evaluate(variables, translated).confusion for name, variables in networks.items()
        }
    networks = {name: meshes.to_host(variables) for name, variables in networks.items()}
    if not distributed.is_first():
        return
    for name, features in seen.items():
        for domain, plane in embed(**features, seed=config.data.seed).items():
            arrays[f"plane_{name}_{domain}"] = plane
    for domain, data in domains.items():
        arrays[f"classes_{domain}"] = data.labels[spread(len(data.labels), shown)]
    if synthetic_target is not None:
        rows = spread(len(source.labels), _EXAMPLES)
        made = synthetic_target[rows]
        arrays["originals"], arrays["translations"] = source.images[rows], made
        arrays["nearest"] = nearest(made, task.target_train.images)
    examples = measured.target_test.images[spread(len(measured.target_test.labels), _EXAMPLES)]
    arrays["examples"] = np.asarray(evaluation_views(jnp.asarray(examples), config.augment, 1)[0])
    for name, variables in networks.items():
        maps = attention_maps(model, variables, examples, config)
        metrics["layers"] = list(maps)
        arrays[f"attention_{name}"] = np.stack(list(maps.values()))
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # for `allow_pickle`
    files.write_bytes(workdir.diagnostics_npz, content.getvalue())
    files.write_json(workdir.diagnostics_json, metrics)


def embed(source: np.ndarray, target: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Joint t-SNE embedding of the features of both domains in the plane.

    Args:
      source: `[N,D]`.
      target: `[M,D]`.

    Returns:
      `source` `[N,2]` and `target` `[M,2]`, in [0, 1], float32.
    """
    # Imported here, as it takes seconds and most commands do not need it.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = np.concatenate([source, target]).astype(np.float64)
    fewer = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(30, max(1, (len(features) - 1) // 3))
    # With so few points several threads are slower, and far slower if other processes are running.
    with threadpool_limits(1):
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(fewer)
    low, high = plane.min(axis=0), plane.max(axis=0)
    plane = ((plane - low) / np.maximum(high - low, 1e-9)).astype(np.float32)
    return {"source": plane[: len(source)], "target": plane[len(source) :]}


def nearest(images: np.ndarray, others: ImageArray, at_once: int = _READ_AT_ONCE) -> np.ndarray:
    """For each image its nearest neighbour among `others`, or among 5,000 spread over them.

    Args:
      images: uint8 `[N,H,W,3]`.
      others: uint8 `[M,H,W,3]`.
      at_once: how many are read at a time.

    Returns:
      uint8 `[N,H,W,3]`, nearest by the mean squared difference of pixels.
    """
    flat = images.reshape(len(images), -1)
    best, found = np.full(len(images), np.inf), images.copy()
    rows = spread(len(others), _SEARCHED)
    for first in range(0, len(rows), at_once):
        block = others[rows[first : first + at_once]]
        distances = cdist(flat, block.reshape(len(block), -1), "sqeuclidean")
        closest, least = distances.argmin(axis=1), distances.min(axis=1)
        nearer = least < best
        best[nearer], found[nearer] = least[nearer], block[closest[nearer]]
    return found


def attention_maps(
    model: nn.Module, variables: Variables, images: np.ndarray, config: ConfigDict
) -> dict[str, np.ndarray]:
    """Attention maps of a network by layer, as greyscale images.

    Args:
      variables: its parameters and batch statistics, NumPy arrays.
      images: uint8 `[B,H,W,3]`.
      config: the whole config; `augment` and `adapt.layers` are read.

    Returns:
      Layer → uint8 `[B,crop,crop]`, for up to four aligned layers, from the first to the last; the
      map of each image is scaled to 0 to 255.
    """
    names: list[str] = []
    size = crop_size(images.shape[1], config.augment)

    @jax.jit
    def observe(variables, images):
        maps, _ = attention_of(model, variables, images, config.augment, config.adapt.layers)
        names[:] = maps  # from the first layer to the last; a compiled function returns them sorted
        return {name: attention.heat({name: flat}, size) for name, flat in maps.items()}

    shown = jax.device_get(observe(variables, jnp.asarray(images)))
    chosen = np.linspace(0, len(names) - 1, min(len(names), _LAYERS)).round().astype(int)
    return {names[row]: np.round(255 * shown[names[row]]).astype(np.uint8) for row in chosen}


def energy_distance(colours: np.ndarray, others: np.ndarray) -> float:
    """Energy distance (Székely and Rizzo, 2013) between two sets of colours.

    Args:
      colours: `[N,3]`.
      others: `[M,3]`.

    Returns:
      2 E|X-Y| - E|X-X'| - E|Y-Y'|, in the unit of the colours; zero for equal sets.
    """
    within = cdist(colours, colours).mean() + cdist(others, others).mean()
    return float(2 * cdist(colours, others).mean() - within)


def mean_colours(images: ImageArray) -> np.ndarray:
    """Mean red, green and blue of each of up to 2,000 images, `[N,3]` in [-1,1]."""
    rows = spread(len(images), _COLOURED)
    blocks = [rows[first : first + _READ_AT_ONCE] for first in range(0, len(rows), _READ_AT_ONCE)]
    means = [images[block].mean(axis=(1, 2), dtype=np.float64) for block in blocks]
    return np.concatenate(means) / 127.5 - 1


def translation_colours(
    domains: Mapping[str, ImageArray], made: Mapping[str, ImageArray]
) -> dict[str, dict[str, float]]:
    """Energy distance of the mean colours to the other domain's, before and after translation.

    Args:
      domains: by name, the images of the two domains.
      made: by direction, such as `mnist_to_mnist_m`, the translations.

    Returns:
      By direction, the distances of the `originals` and of the `translations` to the images of the
      other domain.
    """
    real = {name: mean_colours(images) for name, images in domains.items()}
    found = {}
    for origin, style in itertools.permutations(domains):
        direction = f"{origin}_to_{style}"
        found[direction] = {
            "originals": energy_distance(real[origin], real[style]),
            "translations": energy_distance(mean_colours(made[direction]), real[style]),
        }
    return found


def log_colours(distances: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a line for each direction of `translation_colours`."""
    for direction, found in distances.items():
        print(
            f"translate {direction}: distance of mean colours to real images "
            f"{found['translations']:.3f}, before translation {found['originals']:.3f}",
            flush=True,
        )
