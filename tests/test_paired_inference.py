"""Inference on both images of a pair, as a user asks for it."""

import csv

import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image
from tiny import CLASSES, MODEL, make_config, make_images, make_labelled

from daaa_jax import evaluation, export, models, predict
from daaa_jax.data.augment import decode, encode
from daaa_jax.errors import UserError
from daaa_jax.evaluation import second_view
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import initial_variables, network_file
from daaa_jax.runtime import mesh

IMAGES, GAMMA = make_images(5, seed=3), 0.625
VARIABLES = initial_variables(jax.random.key(0), MODEL, decode(IMAGES[:1]))


def write_run(folder, source="mnist", target="mnist_m", changes=None, em=None):
    """Writes what `predict` and `export` read; returns a generator and both generators' params."""
    config = make_config({"model.widths": (4, 4, 4), "model.standardize": False, **(changes or {})})
    Workdir(folder).write_config(config)
    generator, _ = models.create_gan(config.pair)
    params = {
        name: generator.init(jax.random.key(seed), decode(IMAGES[:1]))["params"]
        for seed, name in enumerate(("a_to_b", "b_to_a"))
    }
    described = {"domains": sorted([source, target]), "image_size": 32, "pair": config.pair}
    path = folder / "pair" / "generators.safetensors"
    network_file.write(path, params, described)
    about = {
        "source": source,
        "target": target,
        "classes": [f"class {number}" for number in range(CLASSES)],
        "image_size": 32,
        "augment": config.augment,
        "crops": 1,
        "model": config.model,
        "attention": "sum_squares",
        "layers": ".*",
        "em": {"gamma": GAMMA, **(em or {})},
    }
    for name in ("last", "selected"):
        network_file.write(folder / "adapt" / f"{name}.safetensors", VARIABLES, about)
    return generator, params


def posterior(images):
    return jax.nn.softmax(MODEL.apply(VARIABLES, decode(images), train=False))


def paired(generator, params):
    translated = encode(generator.apply({"params": params}, decode(IMAGES)))
    return (posterior(IMAGES) + GAMMA * posterior(translated)) / (1 + GAMMA)


@pytest.mark.parametrize(
    ("source", "target", "direction"),
    [("mnist", "mnist_m", "b_to_a"), ("webcam", "amazon", "a_to_b")],
)
def test_predict_and_export_average_image_and_translation(tmp_path, source, target, direction):
    generator, params = write_run(tmp_path, source, target)
    wanted = paired(generator, params[direction])
    for number, image in enumerate(IMAGES):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    where = ["--workdir", str(tmp_path)]
    predict.main([*where, "--paired", str(tmp_path / "images")])
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    found = [[float(row[f"p(class {k})"]) for k in range(CLASSES)] for row in rows]
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    export.main([*where, "--paired", "--out", str(tmp_path / "model")])
    program = jax_export.deserialize((tmp_path / "model/model.stablehlo").read_bytes())
    np.testing.assert_allclose(program.call(IMAGES), wanted, atol=1e-4)


@pytest.mark.parametrize("what", ["--paired", "--generators"])
def test_onnx_of_pairs_and_generators_is_as_the_program(tmp_path, what):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    generator, params = write_run(tmp_path)
    name, wanted, tolerance = "model", paired(generator, params["b_to_a"]), 1e-3
    if what == "--generators":
        name, tolerance = "mnist_m_to_mnist", 1
        wanted = encode(generator.apply({"params": params["b_to_a"]}, decode(IMAGES)))
    export.main([f"--workdir={tmp_path}", what, "--onnx", f"--out={tmp_path / 'out'}"])
    session = onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES})
    np.testing.assert_allclose(found.astype(float), np.asarray(wanted, float), atol=tolerance)


def test_weight_of_zero_is_told(tmp_path, capsys):
    write_run(tmp_path, em={"gamma": 0.0})
    Image.fromarray(IMAGES[0]).save(tmp_path / "one.png")
    predict.main([f"--workdir={tmp_path}", "--paired", str(tmp_path / "one.png")])
    assert "gamma is 0" in capsys.readouterr().out


def test_accuracies_of_the_result_are_those_of_the_mean_of_both_posteriors():
    """With networks and translations that all differ, so that mixing them up would show."""
    data, translations = make_labelled(200, seed=5), make_images(200, seed=6)
    draws, networks = np.random.default_rng(0), {}
    for name in ("source", "last", "selected"):
        classifier = VARIABLES["params"]["classifier"]
        classifier = classifier | {"kernel": draws.normal(size=classifier["kernel"].shape)}
        networks[name] = VARIABLES | {"params": VARIABLES["params"] | {"classifier": classifier}}
    evaluate = evaluation.make_evaluator(MODEL, mesh.data_mesh(jax.devices()[:1]), make_config())
    found = second_view.paired_accuracies(evaluate, data, translations, networks, 0.6, 0.95)

    def share_right(name, weights):
        posteriors = sum(
            weight * jax.nn.softmax(MODEL.apply(networks[name], decode(images), train=False))
            for weight, images in zip(weights, (data.images, translations), strict=True)
        )
        return float((posteriors.argmax(1) == data.labels).mean())

    for name in ("last", "selected"):
        expected = share_right(name, (1, 0.6))
        assert found["paired"][f"paired_{name}"] == pytest.approx(expected)
        assert expected not in (share_right(name, (1, 0)), share_right(name, (0, 1)))
    assert share_right("last", (1, 0.6)) != share_right("selected", (1, 0.6))
    assert found["source_translated"] == pytest.approx(share_right("source", (0, 1)))


def test_network_flag_is_refused_for_an_export_of_generators_only(tmp_path):
    write_run(tmp_path)
    flags = ["--workdir", str(tmp_path), "--out", str(tmp_path / "model"), "--generators"]
    with pytest.raises(UserError, match=r"--generators.*--network"):
        export.main([*flags, "--network=last"])


def test_generators_are_exported_under_the_names_of_their_domains(tmp_path):
    generator, params = write_run(tmp_path)
    export.main([f"--workdir={tmp_path}", "--generators", f"--out={tmp_path / 'out'}"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "mnist_m_to_mnist.stablehlo", "mnist_to_mnist_m.stablehlo"
    }  # fmt: skip
    for name, direction in (("mnist_to_mnist_m", "a_to_b"), ("mnist_m_to_mnist", "b_to_a")):
        program = jax_export.deserialize((tmp_path / f"out/{name}.stablehlo").read_bytes())
        wanted = encode(generator.apply({"params": params[direction]}, decode(IMAGES)))
        made = np.asarray(program.call(IMAGES), int)
        assert np.abs(made - np.asarray(wanted, int)).max() <= 1


def test_posterior_of_a_pair_sums_to_one_and_with_weight_0_is_that_of_the_image():
    config = make_config({"model.standardize": False})
    generator, _ = models.create_gan(config.pair)
    params = generator.init(jax.random.key(1), decode(IMAGES[:1]))["params"]
    for gamma in (0.0, 0.4, 1.0):
        variables = {"classifier": VARIABLES, "generator": params, "gamma": gamma}
        found = evaluation.paired_posteriors(MODEL, generator, variables, IMAGES, config.augment, 1)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
        if gamma == 0:
            np.testing.assert_allclose(found, posterior(IMAGES), rtol=1e-5)


def test_generators_are_exported_without_an_adapted_network(tmp_path):
    write_run(tmp_path)
    for path in (tmp_path / "adapt").iterdir():
        path.unlink()
    export.main([f"--workdir={tmp_path}", "--generators", f"--out={tmp_path / 'out'}"])
    assert len(list((tmp_path / "out").glob("*.stablehlo"))) == 2


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"method": "dann"}, "method=dann"),
        ({"pair.translations": "/elsewhere"}, r"pair\.translations=/elsewhere"),
    ],
)
def test_setting_that_leaves_a_run_without_generators_is_named(tmp_path, changes, setting):
    write_run(tmp_path, changes=changes)
    with pytest.raises(UserError, match=setting):
        predict.main([f"--workdir={tmp_path}", "--paired", str(tmp_path)])


def test_missing_generators_are_named(tmp_path):
    write_run(tmp_path)
    (tmp_path / "pair/generators.safetensors").unlink()
    Image.fromarray(IMAGES[0]).save(tmp_path / "one.png")
    with pytest.raises(UserError, match=r"generators\.safetensors"):
        predict.main([f"--workdir={tmp_path}", "--paired", str(tmp_path / "one.png")])
