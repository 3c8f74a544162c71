"""The baselines: each loss against a plain NumPy version, and which way each network moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from consumed_keys import assert_drawn_once
from tiny import (
    CLASSES,
    MODEL,
    assert_same_bits,
    fast_jit,
    make_config,
    make_context,
    make_images,
    make_labelled,
)

from daaa_jax import baselines, evaluation, losses, main, validate
from daaa_jax.baselines import ada, cdan, dann, dsn, jan, method, reversal, training
from daaa_jax.data.augment import decode
from daaa_jax.data.types import LabelledImages, MeasuredData, Task, UnlabelledImages
from daaa_jax.errors import UserError
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import initial_variables
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime import metrics
from daaa_jax.training import rounds

SOURCE, TARGET = make_labelled(24, seed=1), make_labelled(20, seed=2)
BASELINES = ("dann", "jan", "jan_a", "dsn", "ada", "pixelda", "cdan", "mcc", "shot")


def features(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


def softmax(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


# The losses


def test_domain_loss_is_the_mean_cross_entropy_of_both_domains():
    source, target = features(5, 1)[:, 0], features(3, 1, 1)[:, 0]
    on_source = [np.log(1 + np.exp(-s)) for s in source]
    on_target = [np.log(1 + np.exp(t)) for t in target]
    twin = (np.mean(on_source) + np.mean(on_target)) / 2
    np.testing.assert_allclose(dann.domain_loss(source, target), twin, rtol=1e-5)
    blind = dann.domain_loss(jnp.zeros(4), jnp.zeros(9))
    np.testing.assert_allclose(blind, np.log(2), rtol=1e-6)


def test_reversed_gradient_is_the_negative_times_the_factor():
    def through(x, factor):
        return (reversal.reverse_gradient({"x": x}, factor)["x"] ** 2).sum()

    x = jnp.array([1.0, -2.0])
    assert through(x, jnp.float32(0.3)) == 5
    np.testing.assert_allclose(jax.grad(through)(x, jnp.float32(0.3)), [-0.6, 1.2], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(through)(x, jnp.float32(0)), [0, 0])


def test_weight_grows_from_nothing_to_one():
    assert reversal.ramp(0.0) == 0
    np.testing.assert_allclose(reversal.ramp(0.1), 2 / (1 + np.exp(-1)) - 1, rtol=1e-6)
    assert 0.9999 < reversal.ramp(1.0) < 1


def cosines(source, target):
    directions = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (source, target)]
    return directions[0] @ directions[1].T


def walker_twin(source, target, labels, temperature):
    products = cosines(source, target) / temperature
    walks = softmax(products) @ softmax(products.T)
    total = 0.0
    for i in range(len(source)):
        same = [j for j in range(len(source)) if labels[j] == labels[i]]
        total -= sum(np.log(walks[i, j]) for j in same) / len(same)
    return total / len(source)


def test_walker_loss_is_the_cross_entropy_of_round_trips():
    source, target, labels = features(6, 5), features(4, 5, 1), np.array([0, 1, 0, 2, 1, 0])
    found = ada.walker_loss(source, target, labels, 0.3)
    np.testing.assert_allclose(found, walker_twin(source, target, labels, 0.3), rtol=1e-5)


def test_walker_loss_is_least_where_walks_stay_in_their_class():
    corners, labels = 40 * np.eye(3), np.array([0, 0, 1, 2])
    source, target = corners[labels], corners[[2, 1, 0]]
    right = ada.walker_loss(source, target, labels, 0.02)
    np.testing.assert_allclose(right, np.log(2) / 2, rtol=1e-4)
    swapped = ada.walker_loss(source, target, np.array([0, 1, 1, 2]), 0.02)
    assert swapped > 1 and np.isfinite(swapped)


def test_visit_loss_is_the_cross_entropy_to_an_even_share():
    source, target = features(6, 5), features(4, 5, 1)
    visits = softmax(cosines(source, target) / 0.3).mean(axis=0)
    found = ada.visit_loss(source, target, 0.3)
    np.testing.assert_allclose(found, -np.log(visits).mean(), rtol=1e-5)
    even = ada.visit_loss(np.zeros((6, 5)), target, 0.3)
    np.testing.assert_allclose(even, np.log(4), rtol=1e-5)
    assert found > even


def test_walks_on_a_trained_networks_features_start_spread_out():
    """Features of 2,048 units behind a ReLU, some tens of times as large as an embedding's.

    By their products 1.2 of 64 targets were visited, and walks that never happen have no gradient.
    """
    source, target = (20 * np.maximum(features(64, 2048, seed), 0) for seed in (0, 1))
    temperature = make_config().baselines.ada.temperature
    there, back = ada._steps(source, target, temperature), ada._steps(target, source, temperature)
    visits = np.asarray(there.mean(axis=0))
    assert np.exp(-(visits * np.log(visits)).sum()) > 48
    assert (there @ back).min() > ada._SMALLEST


def test_noise_changes_what_pixelda_makes():
    made, _, state = state_of("pixelda")
    images, params = batch_of().source, state.aux_params["generator"]
    one, other = (made.translate(params, images, jax.random.key(seed)) for seed in (0, 1))
    assert jnp.abs(one - other).mean() > 0.01
    np.testing.assert_array_equal(one, made.translate(params, images, jax.random.key(0)))


@pytest.mark.parametrize("name", ["dann", "dsn"])
def test_domain_discriminators_of_digits_are_the_papers(name):
    """DANN and the release of DSN have one hidden layer of 100 units for them."""
    _, _, state = state_of(name)
    layers = state.aux_params["discriminator"]
    assert set(layers) == {"hidden1", "logit"}
    assert layers["hidden1"]["kernel"].shape[1] == 100


def test_difference_loss_is_the_frobenius_norm_of_the_correlations():
    shared, private = features(6, 5), features(6, 7, 1)
    directions = []
    for x in (shared, private):
        centred = x - x.mean(axis=0)
        directions.append(centred / np.linalg.norm(centred, axis=1, keepdims=True))
    twin = np.linalg.norm(directions[0].T @ directions[1]) ** 2 / 36
    np.testing.assert_allclose(dsn.difference_loss(shared, private), twin, rtol=1e-4)
    assert dsn.difference_loss(shared, shared) > dsn.difference_loss(shared, private)
    assert np.isfinite(dsn.difference_loss(np.ones((6, 5)), private))
    with pytest.raises(ValueError, match=r"\b6\b.*\b5\b"):
        dsn.difference_loss(shared, private[:5])


def test_reconstruction_loss_does_not_see_a_change_of_brightness():
    images, decoded = features(3, 12).reshape(3, 2, 2, 3), features(3, 12, 1).reshape(3, 2, 2, 3)
    error = (images - decoded).reshape(3, 12)
    twin = np.mean([(e**2).mean() - e.sum() ** 2 / 12**2 for e in error])
    np.testing.assert_allclose(dsn.reconstruction_loss(images, decoded), twin, rtol=1e-5)
    np.testing.assert_allclose(dsn.reconstruction_loss(images, images + 0.5), 0, atol=1e-6)


def outputs_of(logits, seen):
    return method.ClassifierOutput(jnp.asarray(logits), jnp.asarray(seen), None)


def make_baseline(name, **changes):
    changes = {f"baselines.{name}.{key}": value for key, value in changes.items()}
    return baselines.make(make_config({"method": name, **changes}), MODEL)


def batch_of(progress=1.0, count=6):
    return method.Inputs(
        source=decode(make_images(count, 3)),
        target=decode(make_images(count, 4)),
        labels=jnp.arange(count) % CLASSES,
        target_labels=jnp.zeros(count, jnp.int32),
        progress=jnp.float32(progress),
        key=jax.random.key(5),
    )


def test_jan_takes_the_joint_distance_of_features_and_softmax():
    source = outputs_of(features(6, CLASSES), features(6, 9, 1))
    target = outputs_of(features(6, CLASSES, 2), features(6, 9, 3))
    assert jan.layers(source)[0] is source.features
    distance = losses.jmmd(
        [source.features, softmax(np.asarray(source.logits))],
        [target.features, softmax(np.asarray(target.logits))],
    )
    found = make_baseline("jan", weight=3.0).penalty(
        {}, method.DomainOutputs(source, target), batch_of(0.2)
    )
    np.testing.assert_allclose(found["jmmd"], 3 * reversal.ramp(0.2) * distance, rtol=1e-5)


def dense(layer, array):
    return np.asarray(array) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def some_outputs(made):
    """Of both domains, and the parameters of what the method has beside the classifier."""
    image = decode(SOURCE.images[:1])
    variables = initial_variables(jax.random.key(1), MODEL, image)
    _, seen = MODEL.apply(variables, image, train=False, mutable=["features"])
    width = seen["features"]["seen"].shape[1]
    source = outputs_of(features(6, CLASSES), features(6, width, 1))
    target = outputs_of(features(6, CLASSES, 2), features(6, width, 3))
    aux_params = made.create(jax.random.key(0), image, source)
    return method.DomainOutputs(source, target), aux_params


def test_jan_a_takes_the_joint_distance_behind_an_adversary_of_each_layer():
    made = make_baseline("jan_a", weight=3.0, width=5)
    given, aux_params = some_outputs(made)

    def behind(outputs):
        both = [np.asarray(outputs.features), softmax(np.asarray(outputs.logits))]
        return [
            dense(
                aux_params[f"layer{n}"]["output"],
                np.maximum(dense(aux_params[f"layer{n}"]["hidden"], layer), 0),
            ).astype(np.float32)
            for n, layer in enumerate(both)
        ]

    distance = losses.jmmd(behind(given.source), behind(given.target))
    found = made.penalty(aux_params, given, batch_of(0.3))
    np.testing.assert_allclose(found["jmmd"], 3 * distance, rtol=1e-3)


def test_dsn_sums_both_domains_each_with_its_own_private_network():
    made = make_baseline("dsn", reconstruction=2.0, difference=3.0, similarity=0.5)
    given, aux_params = some_outputs(made)
    batch = batch_of(0.3)
    found = made.penalty(aux_params, given, batch)
    assert found.keys() == {"reconstruction", "difference", "domain"}
    reconstruction = difference = 0.0
    for domain, images, shared in (
        ("source", batch.source, given.source.features),
        ("target", batch.target, given.target.features),
    ):
        _, seen = MODEL.apply(
            {"params": aux_params[domain]}, images, train=True, mutable=["features", "batch_stats"]
        )
        private = seen["features"]["seen"]
        decoded = dsn.Decoder(images.shape[1]).apply(
            {"params": aux_params["decoder"]}, shared + private
        )
        reconstruction += dsn.reconstruction_loss(images, decoded)
        difference += dsn.difference_loss(shared, private)
    np.testing.assert_allclose(found["reconstruction"], 2 * reconstruction, rtol=1e-4)
    np.testing.assert_allclose(found["difference"], 3 * difference, rtol=1e-4)
    alone = make_baseline("dann", weight=0.5)
    similarity = alone.penalty({"discriminator": aux_params["discriminator"]}, given, batch)
    np.testing.assert_allclose(found["domain"], sum(similarity.values()), rtol=1e-4)


def cdan_twin(source, target, discriminator):
    """CDAN+E's loss of logits and features of both domains, without the reversal."""
    parts = []
    for sign, (logits, seen) in ((-1, source), (1, target)):
        posteriors = softmax(logits)
        weights = 1 + np.exp((posteriors * np.log(posteriors)).sum(1))
        product = np.stack([np.outer(p, f).ravel() for p, f in zip(posteriors, seen, strict=True)])
        hidden = np.maximum(dense(discriminator["hidden1"], product), 0)
        each = np.log1p(np.exp(sign * dense(discriminator["logit"], hidden)[:, 0]))
        parts.append((weights * each).sum() / weights.sum())
    return np.mean(parts)


def test_cdan_weighs_the_domain_loss_by_certainty_on_products():
    made = make_baseline("cdan", widths=(7,), weight=2.0)
    given, aux_params = some_outputs(made)
    arrays = [(np.asarray(x.logits), np.asarray(x.features)) for x in given]
    twin = cdan_twin(*arrays, aux_params["discriminator"])
    found = made.penalty(aux_params, given, batch_of(0.3))
    np.testing.assert_allclose(found["domain"], twin, rtol=1e-4)

    def domain(factor, field, progress):
        source = given.source.replace(**{field: factor * getattr(given.source, field)})
        changed = given._replace(source=source)
        return made.penalty(aux_params, changed, batch_of(progress))["domain"]

    # The reversed gradient grows; that of the logits comes through the weights alone.
    for field in ("features", "logits"):
        late, early, none = (jax.grad(domain)(1.0, field, p) for p in (0.9, 0.05, 0.0))
        assert none == 0 and late != 0
        np.testing.assert_allclose(
            early / late, reversal.ramp(0.05) / reversal.ramp(0.9), rtol=1e-3
        )


def test_cdan_reverses_the_gradients_of_features_and_of_certainty():
    """Central differences of the loss: predictions and the sums of the weights are constants."""
    made = make_baseline("cdan", widths=(7,), weight=2.0)
    given, aux_params = some_outputs(made)
    logits, seen = (
        [np.asarray(getattr(x, field), np.float64) for x in given]
        for field in ("logits", "features")
    )
    discriminator = aux_params["discriminator"]

    def penalty(source_logits, source_features):
        source = given.source.replace(logits=source_logits, features=source_features)
        return made.penalty(aux_params, given._replace(source=source), batch_of(0.6))["domain"]

    def loss(source_logits, source_features):
        weights, constant = (
            1 + np.exp((p * np.log(p)).sum(1)) for p in map(softmax, (source_logits, logits[0]))
        )
        product = np.einsum("bd,bk->bkd", source_features, softmax(logits[0]))
        hidden = np.maximum(dense(discriminator["hidden1"], product.reshape(len(product), -1)), 0)
        each = np.log1p(np.exp(-dense(discriminator["logit"], hidden)[:, 0]))
        return (weights * each).sum() / constant.sum() / 2

    arguments = logits[0], seen[0]
    found = jax.grad(penalty, argnums=(0, 1))(*map(np.float32, arguments))
    for number, gradient in enumerate(found):
        differences = np.empty_like(arguments[number])
        for index in np.ndindex(differences.shape):
            ends = []
            for change in (1e-5, -1e-5):
                changed = [argument.copy() for argument in arguments]
                changed[number][index] += change
                ends.append(loss(*changed))
            differences[index] = (ends[0] - ends[1]) / 2e-5
        reversed_gradient = -2 * reversal.ramp(0.6) * differences
        np.testing.assert_allclose(gradient, reversed_gradient, rtol=1e-3, atol=1e-6)


def test_large_products_are_projected_and_keep_inner_products():
    seen, posteriors = features(40, 600), softmax(3 * features(40, 10, 1))
    exact = cdan.multilinear_map(seen[:, :100], posteriors)
    np.testing.assert_allclose(
        exact, np.einsum("bk,bd->bkd", posteriors, seen[:, :100]).reshape(40, -1), rtol=1e-5
    )
    projected = np.asarray(cdan.multilinear_map(jnp.asarray(seen), jnp.asarray(posteriors)))
    assert projected.shape == (40, 1024)
    np.testing.assert_array_equal(
        projected, cdan.multilinear_map(jnp.asarray(seen), jnp.asarray(posteriors))
    )
    wanted = (seen @ seen.T) * (posteriors @ posteriors.T)
    assert np.corrcoef(wanted.ravel(), (projected @ projected.T).ravel())[0, 1] > 0.9


def test_mcc_penalises_the_targets_confusion_alone():
    made = make_baseline("mcc", weight=3.0, temperature=2.0)
    source, target = (outputs_of(features(6, CLASSES, s), features(6, 9)) for s in (0, 1))
    found = made.penalty({}, method.DomainOutputs(source, target), batch_of(0.0))
    twin = 3 * losses.class_confusion(target.logits, 2.0)
    assert found == {"confusion": pytest.approx(float(twin))}


def test_shot_fixes_the_classifier_layer_and_reads_no_label():
    made, updates, state = state_of("shot", {"adapt.optimizer.weight_decay": 0.1})
    labels = np.full(4, -7)
    batch = training.DomainBatch(SOURCE.images[:4], TARGET.images[:4], labels, labels)
    step = functools.partial(training.train_step, method=made, optimizers=updates, total_steps=10)
    after, found = fast_jit(step)(state, batch)
    before = state.target["params"]
    assert_same_bits(after.target["params"]["classifier"], before["classifier"])
    assert (
        after.target["params"]["convolution1"]["kernel"] != before["convolution1"]["kernel"]
    ).any()
    assert "accuracy" not in found
    others, _ = fast_jit(step)(state, batch.replace(source=SOURCE.images[4:8]))
    assert_same_bits(after.target, others.target)


def bright_quarters(count, seed, contrast=(1, 1, 1), colour=(0, 0, 0)):
    """Images whose class is their brightest quarter, with contrast and colour by channel."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count).astype(np.int32)
    quarters = generator.uniform(0, 100, (count, 4, 3))
    quarters[np.arange(count), labels] += 80
    images = (
        (np.array(contrast) * quarters + np.array(colour)).astype(np.uint8).reshape(count, 2, 2, 3)
    )
    return LabelledImages(images.repeat(16, axis=1).repeat(16, axis=2), labels)


def violet_quarters(count, seed):
    """The same in another domain, where blue is inverted."""
    return bright_quarters(count, seed, contrast=(0.5, 0.3, -0.5), colour=(60, 0, 180))


def trained(name, start=None, weight=1.0):
    """Variables after 120 updates with a method, from those of `start` if given."""
    source, target = bright_quarters(256, seed=10), violet_quarters(256, seed=11)
    changes = {"augment.shift": 0, "adapt.recolour": 0.0, "adapt.optimizer.learning_rate": 1e-2}
    changes[f"baselines.{name}.weight"] = weight
    made, updates, state = state_of(name, changes)
    if start is not None:
        state = state.replace(target=start, opt_state=updates[0].init(start["params"]))
    step = functools.partial(training.train_step, method=made, optimizers=updates, total_steps=120)
    draw, update = np.random.default_rng(0), jax.jit(step)
    for _ in range(120):
        s, t = draw.integers(0, 256, (2, 32))
        batch = training.DomainBatch(
            source.images[s], target.images[t], source.labels[s], np.zeros(32, np.int32)
        )
        state, _ = update(state, batch)
    return state.target


@pytest.fixture(scope="module")
def source_network():
    """Trained on the source domain alone."""
    return trained("mcc", weight=0.0)


@pytest.mark.parametrize("name", ["cdan", "mcc", "shot"])
def test_method_improves_the_source_network_on_the_target(name, source_network):
    measured = violet_quarters(400, seed=12)

    def accuracy(variables):
        logits = MODEL.apply(variables, decode(measured.images), train=False)
        return float((logits.argmax(1) == measured.labels).mean())

    before, after = accuracy(source_network), accuracy(trained(name, source_network))
    longer = trained("mcc", source_network, weight=0.0)  # as many updates on the source alone
    assert after > max(before, accuracy(longer)) + 0.08


def state_of(name, changes=None, seed=0):
    rate = {"adapt.optimizer.learning_rate": 1e-3, "adapt.optimizer.schedule": "progress"}
    config = make_config({"method": name, **rate, **(changes or {})})
    variables = initial_variables(jax.random.key(1), MODEL, decode(SOURCE.images[:1]))
    made = baselines.make(config, MODEL)
    updates = training.make_optimizers(made, 10)
    image = decode(SOURCE.images[:1])
    state = training.create_state(jax.random.key(seed), made, variables, image, updates)
    return made, updates, state


def gradients(name, progress, changes=None):
    """Of the loss by the parameters of the classifier and of the auxiliary networks."""
    made, _, state = state_of(name, changes)

    def loss(params, aux_params):
        classify = classifier({**state.target, "params": params})
        return made.loss(aux_params, classify, batch_of(progress))[:2]

    found, parts = fast_jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
        state.target["params"], state.aux_params
    )
    return *found, parts


def classifier(variables):
    def classify(images, statistics=None):
        current = {**variables, **(statistics or {})}
        logits, observed = MODEL.apply(
            current, images, train=True, mutable=["features", "batch_stats"]
        )
        statistics = {"batch_stats": observed["batch_stats"]}
        return method.ClassifierOutput(logits, observed["features"]["seen"], statistics)

    return classify


@pytest.mark.parametrize(
    ("name", "alone"), [("cdan", True), ("mcc", True), ("dann", False), ("jan", False)]
)
def test_domains_have_their_own_batch_statistics_where_the_release_has(name, alone):
    made, _, state = state_of(name)
    classify, batch = classifier(state.target), batch_of()
    other = batch.replace(target=0.5 * batch.target)
    logits, others = (
        made.loss(state.aux_params, classify, each)[2].logits[: len(batch.labels)]
        for each in (batch, other)
    )
    assert np.allclose(logits, others, atol=1e-6) == alone
    statistics = made.loss(state.aux_params, classify, batch)[2].statistics
    both = classify(batch.target, classify(batch.source).statistics).statistics
    if not alone:
        both = classify(jnp.concatenate([batch.source, batch.target])).statistics
    jax.tree.map(np.testing.assert_allclose, statistics, both)


def norm(tree):
    return float(jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree))))


@pytest.mark.parametrize("name", ["dann", "jan", "jan_a", "ada", "cdan"])
def test_penalty_does_not_move_the_classifier_before_its_weight_has_grown(name):
    weights = ("walker", "visit") if name == "ada" else ("weight",)
    none = {f"baselines.{name}.{weight}": 0.0 for weight in weights}
    plain, _, _ = gradients(name, 1.0, none)
    early, _, _ = gradients(name, 0.0)
    late, _, _ = gradients(name, 1.0)
    assert norm(jax.tree.map(jnp.subtract, early, plain)) < 1e-6
    assert norm(jax.tree.map(jnp.subtract, late, plain)) > 1e-3


@pytest.mark.parametrize("name", ["dann", "jan_a", "cdan"])
def test_adversary_learns_from_the_first_update(name):
    """While its weight grows, the classifier is not moved yet."""
    _, early, _ = gradients(name, 0.0)
    _, late, _ = gradients(name, 1.0)
    assert norm(early) > 1e-4
    np.testing.assert_allclose(norm(early), norm(late), rtol=1e-4)


@pytest.mark.parametrize("name", ["dann", "jan_a"])
def test_adversary_and_classifier_pull_in_opposite_directions(name):
    """A small step of the one lowers what a small step of the other raises."""
    made, _, state = state_of(name)
    batch = batch_of()

    def term(params, aux_params):
        given = []
        for images in (batch.source, batch.target):
            variables = {**state.target, "params": params}
            logits, observed = MODEL.apply(variables, images, train=False, mutable=["features"])
            given.append(method.ClassifierOutput(logits, observed["features"]["seen"], None))
        return sum(made.penalty(aux_params, method.DomainOutputs(*given), batch).values())

    params, aux_params = state.target["params"], state.aux_params
    value = fast_jit(term)
    by_classifier, by_aux = fast_jit(jax.grad(term, argnums=(0, 1)))(params, aux_params)
    step = functools.partial(jax.tree.map, lambda x, g: x - 1e-3 * g)
    before = value(params, aux_params)
    classifier_lowers = value(step(params, by_classifier), aux_params) < before
    aux_lowers = value(params, step(aux_params, by_aux)) < before
    # DANN's discriminator minimises, its features maximise; JAN-A's adversaries maximise.
    assert (classifier_lowers, aux_lowers) == ((False, True) if name == "dann" else (True, False))


def test_each_player_of_pixelda_has_the_gradient_of_its_own_loss():
    made, _, state = state_of("pixelda", {"baselines.pixelda.task": 0.0})
    _, discriminator = baselines.pixelda.models.create_gan(made.config.pair)
    batch, aux_params = batch_of(), state.aux_params

    def make(params):
        return made.translate(params, batch.source, batch.key)

    def least_squares(params, images, real):
        logits = discriminator.apply({"params": params}, images)
        return jnp.mean((logits - real) ** 2)

    @fast_jit
    def twins():
        fake = make(aux_params["generator"])
        return (
            jax.grad(lambda p: least_squares(aux_params["discriminator"], make(p), 1.0))(
                aux_params["generator"]
            ),
            jax.grad(
                lambda p: 0.5 * (least_squares(p, batch.target, 1.0) + least_squares(p, fake, 0.0))
            )(aux_params["discriminator"]),
        )

    @fast_jit
    def by_task():
        """How the mean cross-entropy of what is made changes with it."""

        def loss(params):
            images = jnp.concatenate([batch.source, make(params)])
            logits, _ = MODEL.apply(state.target, images, train=True, mutable=["batch_stats"])
            of_made = jax.nn.log_softmax(logits)[len(batch.labels) :]
            of_source = jax.nn.log_softmax(logits)[: len(batch.labels)]
            # What is made also moves the source images' logits, by the batch statistics.
            taken = [
                jnp.take_along_axis(each, batch.labels[:, None], 1).mean()
                for each in (of_source, of_made)
            ]
            return -sum(taken)

        return jax.grad(loss)(aux_params["generator"])

    _, found, parts = gradients("pixelda", 0.5, {"baselines.pixelda.task": 0.0})
    for name, twin in zip(("generator", "discriminator"), twins(), strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found[name], twin
        )
    assert parts.keys() == {"cross_entropy", "adversarial", "discriminator"}
    _, with_task, _ = gradients("pixelda", 0.5, {"baselines.pixelda.task": 1.0})
    moved = jax.tree.map(jnp.subtract, with_task["generator"], found["generator"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-4), moved, by_task()
    )
    assert norm(moved) > 1e-3
    same = jax.tree.map(jnp.subtract, with_task["discriminator"], found["discriminator"])
    assert norm(same) < 1e-6


def test_noise_is_an_images_own_and_varies_over_its_pixels():
    channel = baselines.pixelda.NoiseChannel(8)
    vectors = jax.random.uniform(jax.random.key(0), (4, 3), minval=-1, maxval=1)
    seen, _ = channel.init_with_output(jax.random.key(1), vectors)
    assert seen.shape == (4, 8, 8, 1)
    assert seen.std(axis=(1, 2)).min() > 0.1 and seen.std(axis=0).min() > 0


@pytest.mark.parametrize("side", [32, 28, 96, 98, 224, 225, 5])
def test_decoder_makes_images_of_any_size(side):
    made, variables = jax.eval_shape(
        lambda: dsn.Decoder(side).init_with_output(jax.random.key(0), jnp.zeros((2, 7)))
    )
    assert made.shape == (2, side, side, 3)
    assert sum(x.size for x in jax.tree.leaves(variables)) < 100_000


# The stage


def adapt(workdir, name, devices=1, target_labels=TARGET.labels, changes=None):
    config = make_config({"method": name, "adapt.batch_size": 16, **(changes or {})})
    target = LabelledImages(TARGET.images, target_labels)
    with make_context(workdir, config, devices) as context:
        evaluate = evaluation.make_evaluator(
            MODEL, context.mesh, make_config({"evaluate.batch_size": 8, "em.threshold": 0.5})
        )
        variables = initial_variables(jax.random.key(1), MODEL, decode(SOURCE.images[:1]))
        unlabelled = UnlabelledImages(TARGET.images)
        method = training.target_training(
            config, MODEL, variables, SOURCE, unlabelled, target_labels
        )
        measured = MeasuredData(SOURCE, target, target)
        return rounds.run(method, config, evaluate, measured, context)


@pytest.mark.parametrize("name", BASELINES)
def test_target_labels_reach_no_baseline(name, tmp_path):
    variables, loop_state = adapt(tmp_path / "right", name)
    wrong = (TARGET.labels + 1) % CLASSES
    others, other_loop_state = adapt(tmp_path / "wrong", name, target_labels=wrong)
    assert_same_bits(variables, others)
    assert loop_state["selected"]["step"] == other_loop_state["selected"]["step"]
    assert loop_state["last"]["target_test"] != other_loop_state["last"]["target_test"]
    lines = metrics.rounds(metrics.read(tmp_path / "right" / "metrics.jsonl"))
    assert len(lines) == 2 and all("target_test" in line for line in lines)


def test_upper_bound_is_trained_on_target_labels(tmp_path):
    variables, _ = adapt(tmp_path / "right", "upper_bound")
    wrong = (TARGET.labels + 1) % CLASSES
    others, _ = adapt(tmp_path / "wrong", "upper_bound", target_labels=wrong)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables["params"], others["params"])
    assert not all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", ["dsn", "pixelda"])
def test_several_devices_train_as_one(name, tmp_path):
    lines = []
    for devices in (1, 8):
        adapt(tmp_path / str(devices), name, devices, changes={"adapt.optimizer.name": "sgd"})
        lines.append(
            [x for x in metrics.read(tmp_path / str(devices) / "metrics.jsonl") if "loss" in x]
        )
    for one, several in zip(*lines, strict=True):
        assert one["step"] == several["step"]
        assert several["loss"] == pytest.approx(one["loss"], rel=1e-5), one["step"]


@pytest.mark.parametrize("name", ["dann", "pixelda"])
def test_target_images_are_recoloured_unless_the_method_generates_them(name, monkeypatch):
    """The colours are drawn from a separate key."""
    made, updates, state = state_of(name, {"augment.shift": 2})
    seen = []
    monkeypatch.setattr(
        training,
        "recolour",
        lambda key, images, strength: (seen.append(jax.random.uniform(key)), images)[1],
    )
    labels = SOURCE.labels[:4]
    batch = training.DomainBatch(SOURCE.images[:4], TARGET.images[:4], labels, labels)
    settings = {"method": made, "optimizers": updates, "total_steps": 10}
    assert_drawn_once(monkeypatch, lambda: training.train_step(state, batch, **settings))
    assert len(seen) == (name == "dann")


@pytest.mark.parametrize("init", ["source", "scratch"])
def test_baseline_starts_from_the_same_network_as_ours(init, tmp_path, monkeypatch):
    started = []

    def no_steps(name, create_state, *_, **__):
        started.append(create_state())
        return started[0], {}

    monkeypatch.setattr(rounds.loop, "run", no_steps)
    adapt(tmp_path, "dann", changes={"adapt.init": init})
    variables = initial_variables(jax.random.key(1), MODEL, decode(SOURCE.images[:1]))
    same = [
        bool((a == b).all())
        for a, b in zip(
            jax.tree.leaves(started[0].target["params"]),
            jax.tree.leaves(variables["params"]),
            strict=True,
        )
    ]
    assert all(same) == (init == "source")


def test_auxiliary_networks_have_the_learning_rate_of_the_classifiers_last_layer():
    changes = {
        "adapt.optimizer.name": "sgd",
        "adapt.optimizer.classifier_factor": 10.0,
        "adapt.optimizer.momentum": 0.0,
        "adapt.optimizer.schedule": "constant",
    }
    made, updates, state = state_of("dann", changes)
    ones = jax.tree.map(jnp.ones_like, state.aux_params)
    change, _ = updates[1].update(ones, state.aux_opt_state, state.aux_params)
    np.testing.assert_allclose(jax.tree.leaves(change)[0], -1e-2, rtol=1e-6)
    assert made.config.adapt.optimizer.learning_rate == 1e-3  # the config's is left alone


def test_odd_batches_and_unknown_methods_are_refused():
    mesh = meshes.data_mesh(jax.devices()[:1])
    with pytest.raises(UserError, match=r"adapt\.batch_size=9\b.*method=dann"):
        validate.check_settings(make_config({"method": "dann", "adapt.batch_size": 9}), mesh)
    with pytest.raises(UserError, match=r"method=dan\b.*daaa, dann, jan"):
        validate.check_settings(make_config({"method": "dan"}), mesh)
    with pytest.raises(UserError, match=r"baselines\.dann\.widths=.*0"):
        validate.check_settings(make_config({"baselines.dann.widths": (0,)}), mesh)
    # What only our method needs is checked for our method alone.
    scratch = {"adapt.init": "scratch", "em.start_step": 0}
    validate.check_settings(make_config({"method": "dann", **scratch}), mesh)
    with pytest.raises(UserError, match=r"em\.start_step=0\b.*em\.refresh_every"):
        validate.check_settings(make_config(scratch), mesh)
    with pytest.raises(UserError, match=r"adapt\.batch_size\b.*\b4\b.*\b8\b.*\b8\b"):
        validate.check_settings(
            make_config({"method": "jan", "pair.batch_size": 8, "translate.batch_size": 8}),
            meshes.data_mesh(jax.devices()[:8]),
        )


def test_networks_that_do_not_fit_the_images_are_refused_at_the_start():
    """PixelDA's generator gets the crop, whose size it may not be able to halve."""
    task = Task(
        "a",
        "b",
        tuple("wxyz"),
        SOURCE,
        UnlabelledImages(TARGET.images),
        MeasuredData(SOURCE, TARGET, TARGET),
    )
    changes = {"method": "pixelda", "pair.downsamplings": 2, "model.widths": (4, 4, 4)}
    validate.network_shapes(make_config(changes), task)
    with pytest.raises(UserError, match=r"30x30.*\b2\b"):
        validate.network_shapes(
            make_config(changes | {"augment.crop": 30, "model.name": "efficientnet_lite0"}), task
        )
    # The CycleGAN's generators are needed where some loss reads translations.
    deep = {"pair.downsamplings": 6}
    with pytest.raises(UserError, match=r"32x32.*\b6\b"):
        validate.network_shapes(make_config(deep), task)
    no_translations = {"adapt.mix.t_f": 0.0, "adapt.mix.s_f": 0.0, "adapt.beta": 0.0}
    validate.network_shapes(make_config(deep | no_translations | {"em.posterior": "target"}), task)
    unlabelled = LabelledImages(TARGET.images, np.full(20, -1, np.int32))
    task = dataclasses.replace(task, evaluation=MeasuredData(SOURCE, TARGET, unlabelled))
    with pytest.raises(UserError, match="method=upper_bound"):
        validate.network_shapes(make_config({"method": "upper_bound"}), task)


@pytest.mark.parametrize("name", ["mcc", "shot"])
def test_method_alone_is_enough_on_the_command_line(name, tmp_path):
    """The validator follows, and is part of the run's identity under its own name."""
    small = ["pair.epochs=1", "source.epochs=1", "adapt.rounds=1", "evaluate.audit_images=10"]
    arguments = ["--config=configs/digits.py:smoke", f"--config.method={name}"]
    arguments += [f"--config.{setting}" for setting in small]
    main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    config = Workdir(tmp_path / "run").config()
    assert config.evaluate.validator == "neighbourhood_density"
    assert Workdir(tmp_path / "run").result()["method"] == name
    started = Workdir(tmp_path / "run").marker("adapt")
    assert started["settings"]["evaluate"]["validator"] == "neighbourhood_density"
