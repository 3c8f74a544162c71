"""Validators without target labels, against plain twins and where their values are known."""

import math

import jax
import numpy as np
import pytest
from tiny import make_config

from configs import digits
from daaa_jax import validate
from daaa_jax.errors import UserError
from daaa_jax.evaluation import Outputs, model_selection
from daaa_jax.evaluation.model_selection import HeldOut
from daaa_jax.runtime.mesh import data_mesh


def outputs_of(posteriors, features=None):
    posteriors = np.asarray(posteriors, np.float64)
    return Outputs(posteriors, posteriors if features is None else features)


def random_posteriors(count, classes=4, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), count)


def entropy_twin(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def test_entropy_is_the_mean_over_images():
    p = random_posteriors(7)
    twin = -sum(map(entropy_twin, p)) / 7
    assert model_selection.entropy(outputs_of(p)) == pytest.approx(twin)
    assert model_selection.entropy(outputs_of(np.eye(3))) == 0
    assert model_selection.entropy(outputs_of(np.full((5, 4), 0.25))) == pytest.approx(-math.log(4))


def test_information_is_zero_for_equal_posteriors_and_log_k_for_certain_even_classes():
    assert model_selection.information(outputs_of(np.eye(4))) == pytest.approx(math.log(4))
    alike = np.tile([0.7, 0.2, 0.1], (6, 1))
    assert model_selection.information(outputs_of(alike)) == pytest.approx(0)
    # A network that calls every image the same is confident and uninformative.
    collapsed = outputs_of(np.tile([1.0, 0.0], (6, 1)))
    assert model_selection.entropy(collapsed) == 0 and model_selection.information(collapsed) == 0


def test_certain_posteriors_have_finite_scores():
    certain = outputs_of(np.eye(3, dtype=np.float32)[[0, 0, 1, 2]])
    shares = [0.5, 0.25, 0.25]
    assert model_selection.information(certain) == pytest.approx(entropy_twin(shares))
    assert math.isfinite(model_selection.neighbourhood_density(certain))
    assert model_selection.neighbourhood_density(outputs_of(np.eye(3)[:1])) == 0  # no neighbour


@pytest.mark.parametrize("rows_at_once", [1, 3, 1024])
def test_neighbourhood_density_is_the_mean_entropy_of_similarities(rows_at_once, monkeypatch):
    monkeypatch.setattr(model_selection, "_ROWS_AT_ONCE", rows_at_once)
    p = random_posteriors(8, seed=1)
    total = 0.0
    for i in range(8):
        cosines = [
            p[i] @ p[j] / math.sqrt((p[i] @ p[i]) * (p[j] @ p[j])) for j in range(8) if j != i
        ]
        weights = [math.exp(c / 0.05) for c in cosines]
        total += entropy_twin([w / sum(weights) for w in weights])
    score = model_selection.neighbourhood_density(outputs_of(p))
    assert score == pytest.approx(total / 8, rel=1e-9)


def test_neighbourhood_density_is_higher_for_dense_neighbourhoods():
    """Four images of each of two classes: each has three near ones, then each has one."""
    dense = np.repeat(np.eye(2), 4, axis=0)
    assert model_selection.neighbourhood_density(outputs_of(dense)) == pytest.approx(
        math.log(3), 1e-4
    )
    loose = np.repeat(np.eye(4), 2, axis=0)
    assert model_selection.neighbourhood_density(outputs_of(loose)) < 0.01


def test_control_variate_keeps_the_mean_and_lowers_the_variance():
    generator = np.random.default_rng(2)
    plain, better = [], []
    for _ in range(300):
        weights = generator.gamma(2.0, 0.5, 200)  # of mean 1
        weighted = weights * (1 + 0.1 * generator.normal(size=200))
        plain.append(weighted.mean())
        better.append(model_selection.control_variate_mean(weighted, weights))
    assert np.mean(better) == pytest.approx(1, abs=0.01)
    assert np.std(better) < 0.3 * np.std(plain)
    equal = np.ones(5)
    assert model_selection.control_variate_mean(2 * equal, equal) == 2


def test_density_ratio_is_that_of_two_normal_distributions():
    generator = np.random.default_rng(3)
    source, target = generator.normal(0, 1, (4000, 1)), generator.normal(1, 1, (2000, 1))
    at = np.array([[-1.0], [0.5], [2.0]])
    exact = np.exp(at[:, 0] - 0.5)
    assert model_selection.density_ratio(source, target, at) == pytest.approx(exact, rel=0.15)


def test_deep_embedded_validation_weighs_errors_by_how_target_like_an_image_is():
    """Two networks with as many errors: one errs where the target domain lies, the other not."""
    generator = np.random.default_rng(4)
    source, target = generator.normal(0, 1, (1000, 1)), generator.normal(2, 1, (1000, 1))
    held_out = generator.normal(0, 1, (1000, 1))
    labels = np.zeros(1000, int)
    scores = {}
    for name, wrong in (("there", held_out[:, 0] > 0), ("elsewhere", held_out[:, 0] < 0)):
        right = np.where(wrong, 0.1, 0.9)
        outputs = Outputs(np.stack([right, 1 - right], axis=1), held_out)
        scores[name] = model_selection.deep_embedded(
            outputs_of([[0.5, 0.5]] * 1000, target), HeldOut(outputs, labels, source)
        )
    assert scores["there"] < 2 * scores["elsewhere"] < 0


def test_deep_embedded_validation_names_the_setting_that_it_needs():
    with pytest.raises(UserError, match=r"data\.source_holdout"):
        config = make_config({"evaluate.validator": "deep_embedded"})
        validate.check_settings(config, data_mesh(jax.devices()[:1]))


REWARDED = [
    {"method": "mcc"},
    {"method": "shot"},
    {"adapt.information": 0.1},
    {"adapt.confusion": 0.1},
]


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, "information"),
        ({"method": "cdan"}, "information"),
        ({"method": "dann", "adapt.information": 0.1}, "information"),
        *((changes, "neighbourhood_density") for changes in REWARDED),
    ],
)
def test_validator_is_by_default_one_that_training_does_not_reward(changes, chosen):
    config = digits.get_config()
    config.update_from_flattened_dict(changes)
    validate.resolve(config, 1)
    assert config.evaluate.validator == chosen
    validate.check_settings(config, data_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("changes", REWARDED)
@pytest.mark.parametrize("validator", ["information", "entropy"])
def test_validator_that_training_rewards_is_refused_by_name(changes, validator):
    config = make_config(changes | {"evaluate.validator": validator})
    (named,) = changes
    with pytest.raises(UserError, match=rf"evaluate\.validator={validator}\b.*{named}"):
        validate.check_settings(config, data_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("name", ["confusion", "information"])
def test_loss_on_target_images_needs_some(name):
    config = make_config(
        {f"adapt.{name}": 0.1, "adapt.mix.t": 0.0, "evaluate.validator": "neighbourhood_density"}
    )
    with pytest.raises(UserError, match=rf"adapt\.{name}\b.*adapt\.mix\.t"):
        validate.check_settings(config, data_mesh(jax.devices()[:1]))
