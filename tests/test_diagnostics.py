"""Measurements for the report: the plane, the nearest images, and attention maps."""

import json

import jax
import numpy as np
import pytest
from tiny import CLASSES, MODEL, make_config, make_images, make_labelled

from daaa_jax import attention, evaluation
from daaa_jax.data.augment import decode
from daaa_jax.data.images import Images
from daaa_jax.data.types import MeasuredData, Task, UnlabelledImages
from daaa_jax.evaluation import diagnostics
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import EfficientNetLite0, initial_variables
from daaa_jax.runtime import mesh as meshes


def test_nearest_image_is_the_one_of_least_squared_difference():
    others = make_images(40, seed=1, size=8)
    images = others[[7, 31]].copy()
    images[0, 0, 0] ^= 1
    for at_once in (3, 40, 256):
        found = diagnostics.nearest(images, Images(others[:11], others[11:]), at_once)
        np.testing.assert_array_equal(found, others[[7, 31]])


def test_plane_keeps_groups_together_and_is_the_same_each_time():
    draws = np.random.default_rng(0)
    centres = 20 * draws.normal(size=(3, 10))
    groups = np.arange(30) % 3
    source, target = (centres[groups] + draws.normal(size=(30, 10)) for _ in range(2))
    plane = diagnostics.embed(source, target, seed=0)
    assert plane["source"].shape == plane["target"].shape == (30, 2)
    points, owners = np.concatenate([*plane.values()]), np.concatenate([groups, groups])
    assert points.min() == 0 and points.max() == 1
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (owners[distances.argmin(axis=1)] == owners).all()
    again = diagnostics.embed(source, target, seed=0)
    np.testing.assert_array_equal(again["target"], plane["target"])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_plane_of_few_images(count):
    features = np.random.default_rng(1).normal(size=(2, count, 6))
    plane = diagnostics.embed(*features, seed=0)
    assert np.isfinite([*plane.values()]).all() and plane["source"].shape == (count, 2)


def test_attention_is_that_of_the_network():
    images, config = make_images(3), make_config({"adapt.layers": "conv[13]"})
    variables = initial_variables(jax.random.key(0), MODEL, decode(images[:1]))
    variables = jax.tree.map(np.asarray, variables)
    maps = diagnostics.attention_maps(MODEL, variables, images, config)
    assert list(maps) == ["conv1", "conv3"]
    _, observed = MODEL.apply(variables, decode(images), train=False, mutable=["intermediates"])
    twin = np.asarray(attention.collect(observed["intermediates"])["conv1"]).reshape(3, 32, 32)
    low, high = twin.min((1, 2), keepdims=True), twin.max((1, 2), keepdims=True)
    np.testing.assert_allclose(maps["conv1"], 255 * (twin - low) / (high - low), atol=0.6)
    assert maps["conv3"].shape == (3, 32, 32) and maps["conv3"].dtype == np.uint8


def test_layers_are_shown_from_the_first_to_the_last():
    config = make_config({"adapt.layers": "(?!conv_stem$).*"})
    model = EfficientNetLite0(num_classes=CLASSES)
    images = make_images(2, size=32)
    variables = jax.eval_shape(lambda: initial_variables(jax.random.key(0), model, decode(images)))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    names = list(diagnostics.attention_maps(model, variables, images, config))
    assert names[0] == "block0/conv_depthwise" and names[-1] == "conv_head"
    numbers = [int(name.partition("/")[0].removeprefix("block")) for name in names[:-1]]
    assert numbers == sorted(numbers) and len(names) == 4


def test_all_is_written_and_translations_are_evaluated_by_their_labels(tmp_path, monkeypatch):
    def embed(source, target, seed):  # takes seconds, and is tested above
        return {"source": source[:, :2], "target": target[:, :2]}

    monkeypatch.setattr(diagnostics, "embed", embed)
    source, target = make_labelled(24, seed=1), make_labelled(20, seed=2)
    config = make_config({"evaluate.audit_images": 7, "evaluate.batch_size": 8})
    evaluate = evaluation.make_evaluator(MODEL, meshes.data_mesh(jax.devices()[:1]), config)
    networks = {
        name: initial_variables(jax.random.key(seed), MODEL, decode(source.images[:1]))
        for seed, name in enumerate(("source", "adapted"))
    }
    task = Task(
        "a",
        "b",
        tuple("wxyz"),
        source,
        UnlabelledImages(target.images),
        MeasuredData(source, target, target),
    )
    made = make_images(24, seed=3)
    workdir = Workdir(tmp_path)
    diagnostics.write(
        workdir,
        model=MODEL,
        networks=networks,
        task=task,
        synthetic_target=Images(made),
        evaluate=evaluate,
        config=config,
    )
    metrics = json.loads(workdir.diagnostics_json.read_text())
    with np.load(workdir.diagnostics_npz) as arrays:
        arrays = dict(arrays)
    for name, variables in networks.items():
        logits = MODEL.apply(variables, decode(made), train=False)
        twin = np.zeros((CLASSES, CLASSES), int)
        np.add.at(twin, (source.labels, np.asarray(logits).argmax(1)), 1)
        np.testing.assert_array_equal(metrics["translated"][name], twin)
        assert arrays[f"plane_{name}_target"].shape == (7, 2)
    rows = evaluation.spread(20, 7)
    np.testing.assert_array_equal(arrays["classes_target"], target.labels[rows])
    np.testing.assert_array_equal(arrays["examples"], target.images[evaluation.spread(20, 8)])
    np.testing.assert_array_equal(arrays["translations"], made[evaluation.spread(24, 8)])
    assert metrics["layers"] == ["conv1", "conv2", "conv3"]
    assert arrays["attention_adapted"].shape == (3, 8, 32, 32)

    diagnostics.write(
        workdir,
        model=MODEL,
        networks=networks,
        task=task,
        synthetic_target=None,
        evaluate=evaluate,
        config=config,
    )
    assert "translated" not in json.loads(workdir.diagnostics_json.read_text())
