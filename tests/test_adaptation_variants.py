"""The variants of the paper's tables are settings of one step: EM-A, B, C, no L_AT, the mixes."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import (
    CLASSES,
    assert_same_bits,
    fast_jit,
    make_config,
    make_context,
    make_images,
    make_labelled,
)

from daaa_jax import adaptation, em, evaluation, source
from daaa_jax.data.augment import decode
from daaa_jax.data.batches import gather
from daaa_jax.data.pairs import GROUPS, BatchStream, all_images
from daaa_jax.data.types import MeasuredData
from daaa_jax.evaluation import second_view
from daaa_jax.models import DigitNetwork, initial_variables
from daaa_jax.training import loop, optimizers, rounds

# Two feature convolutions instead of three, for images of half the size.
MODEL, SIZE = DigitNetwork(num_classes=CLASSES, widths=(4, 4)), 16
SOURCE, TARGET = make_labelled(10, 1, SIZE), make_labelled(7, 2, SIZE)
IMAGES = np.asarray(
    all_images(SOURCE.images, make_images(10, 3, SIZE), TARGET.images, make_images(7, 4, SIZE))
)
OPTIMIZER = optax.adam(1e-2)
MIXES = {
    "S": (1, 0, 0, 0),
    "T_f": (0, 1, 0, 0),
    "S+T_f": (0.35, 0.15, 0, 0),
    "T_f+T": (0, 0.15, 0.35, 0),
    "all": (0.35, 0.15, 0.35, 0.15),
}


@functools.cache
def variables_of(seed):
    return initial_variables(jax.random.key(seed), MODEL, decode(IMAGES[:1]))


def mix(name):
    return {f"adapt.mix.{group}": float(s) for group, s in zip(GROUPS, MIXES[name], strict=True)}


def make_state(target_seed=1):
    key, source, target = jax.random.key(0), variables_of(0), variables_of(target_seed)
    return adaptation.create_state(key, source, target, OPTIMIZER)


@functools.cache
def compiled(settings):
    config = make_config(
        {"em.start_step": 0, "em.refresh_every": 1000, "em.posterior": "target"} | dict(settings)
    )
    sizes = adaptation.group_sizes(8, [config.adapt.mix[group] for group in GROUPS])
    step = functools.partial(adaptation.train_step, model=MODEL, optimizer=OPTIMIZER, config=config)
    return fast_jit(step), BatchStream(SOURCE.labels, len(TARGET.images), sizes, seed=0)


def train(steps, state=None, settings=()):
    """The states before and after each step, and each step's metrics as (sum, count)."""
    step, stream = compiled(tuple(sorted(dict(settings).items())))
    states, lines = [make_state() if state is None else state], []
    for number in range(steps):
        state, metrics = step(states[-1], gather([IMAGES], stream.at(number)))
        states.append(state)
        lines.append({k: (float(m.total), float(m.count)) for k, m in metrics.items()})
    return states, lines


def differ(tree, other):
    return any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (tree, other)), strict=True))


# EM


@pytest.mark.parametrize("every", [1, 2])
def test_posterior_network_is_the_target_network_of_the_last_sync(every):
    """EM-A is a sync after every step; parameters and batch statistics both."""
    states, _ = train(4, settings={"em.refresh_every": every})
    for step, state in enumerate(states):
        assert_same_bits(state.posterior, states[step // every * every].target)
    assert differ(states[-1].posterior, states[0].posterior)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_result_is_the_moving_average_of_the_networks_if_there_is_one(tmp_path, monkeypatch, decay):
    """Of the two rounds, the kept network is that of a round too."""
    final, kept, run = [], [], loop.run

    def noted(*args, **kwargs):
        state, loop_state = run(*args, **kwargs)
        final.append(state)
        return state, loop_state

    monkeypatch.setattr(loop, "run", noted)
    result, loop_state = adapt(
        tmp_path, {"em.decay": decay}, keep=lambda step, network: kept.append((step, network))
    )
    (state,) = final
    assert differ(state.posterior, state.target) == (decay > 0)
    assert_same_bits(result, state.posterior)
    first, _ = adapt(tmp_path / "first", {"em.decay": decay, "adapt.rounds": 1})
    rounds_of = {3: first, 6: result}
    for step, network in kept:
        assert_same_bits(network, rounds_of[step])
    assert kept[-1][0] == loop_state["selected"]["step"]


def test_without_soft_labels_networks_are_not_averaged(tmp_path):
    none = {"adapt.mix.t": 0.0, "adapt.mix.s_f": 0.0}
    plain, averaged = (adapt(tmp_path / str(n), none | {"em.decay": n})[0] for n in (0.0, 0.5))
    assert_same_bits(plain, averaged)


def test_source_and_posterior_networks_get_no_gradient():
    states, _ = train(3)
    for state in states:
        assert_same_bits(state.source, states[0].source)
        assert_same_bits(state.posterior, states[0].posterior)
    assert differ(states[-1].target["params"], states[0].target["params"])
    moments = jax.tree.leaves(states[0].opt_state[0].mu)
    assert len(moments) == len(jax.tree.leaves(states[0].target["params"]))


def test_threshold_zero_learns_from_every_posterior_and_above_one_from_none():
    """EM-B is threshold 0."""
    _, (everything,) = train(1)
    assert everything["kept"] == (4, 4) and everything["em"][0] > 0
    _, (nothing,) = train(1, settings={"em.threshold": 1.1})
    assert nothing["kept"] == (0, 4) and nothing["em"][0] == 0


def test_posterior_is_not_learned_from_before_the_start_step():
    states, lines = train(4, settings={"em.start_step": 2})
    other = make_state().replace(posterior=variables_of(5))
    others, _ = train(4, other, {"em.start_step": 2})
    assert [line["em"][0] > 0 for line in lines] == [False, False, True, True]
    for state, other in zip(states[:3], others[:3], strict=True):
        assert_same_bits(state.target, other.target)
    assert differ(states[3].target["params"], others[3].target["params"])
    # What would be kept is measured all the while.
    assert all(line["kept"] == (4, 4) for line in lines)


# The second view, ours


def targets_logits(network, rows):
    """Of a network in evaluation mode, on images as they are."""
    return MODEL.apply(network, decode(IMAGES[rows]), train=False)


@pytest.mark.parametrize("reader", ["source", "posterior"])
def test_paired_posterior_reads_the_translations_too(reader):
    settings = {"em.posterior": "paired", "em.second_view": reader, "augment.shift": 0}
    state = make_state().replace(gamma=jnp.float32(0.7), posterior=variables_of(5))
    _, stream = compiled(tuple(sorted(settings.items())))
    batch = stream.at(0)
    network = state.source if reader == "source" else state.posterior
    own = targets_logits(state.posterior, batch.posterior.rows)
    other = targets_logits(network, batch.posterior.rows + len(TARGET.images))
    wanted = em.paired_posterior(own, other, 0.7).max(axis=-1).sum()
    _, (line,) = train(1, state, settings)
    np.testing.assert_allclose(line["confidence"][0], wanted, rtol=1e-5)


def test_class_prior_divides_the_translations_posterior_by_the_classes_frequencies():
    config = make_config({"em.start_step": 0, "em.class_prior": True, "augment.shift": 0})
    frequencies = np.bincount(SOURCE.labels, minlength=CLASSES) / len(SOURCE.labels)
    training = adaptation.target_training(
        config, MODEL, make_state().source, IMAGES, SOURCE.labels, 1
    )
    state = training.create_state().replace(gamma=jnp.float32(0.7), posterior=variables_of(5))
    batch = training.batch_at(0)
    own = targets_logits(state.posterior, batch.posterior.rows)
    other = targets_logits(state.source, batch.posterior.rows + len(TARGET.images))
    wanted = em.paired_posterior(own, other, 0.7, np.log(frequencies)).max(axis=-1).sum()
    assert len(set(frequencies)) > 1
    _, metrics = fast_jit(training.train_step)(state, gather([IMAGES], batch))
    np.testing.assert_allclose(metrics["confidence"].total, wanted, rtol=1e-5)


def test_paired_posterior_without_weight_is_the_papers():
    """Until the weight is measured, and where it is 0: of one step the gradient too."""
    (_, papers), lines = train(1)
    (_, paired), others = train(1, settings={"em.posterior": "paired"})
    for name in ("confidence", "kept", "grad_norm", "em"):
        np.testing.assert_allclose(lines[0][name], others[0][name], rtol=1e-6)
    # Adam's first moment is a tenth of the gradient.
    moments = (state.opt_state[0].mu for state in (papers, paired))
    for one, other in zip(*map(jax.tree.leaves, moments), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)
    for one, other in zip(*map(jax.tree.leaves, (papers.target, paired.target)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    weighted = make_state().replace(gamma=jnp.float32(1))
    (_, weighted), _ = train(1, weighted, {"em.posterior": "paired"})
    assert differ(papers.target["params"], weighted.target["params"])
    (_, ignored), _ = train(1, make_state().replace(gamma=jnp.float32(1)))
    assert_same_bits(ignored.target, papers.target)


@pytest.mark.parametrize(("every", "step"), [(1, 3), (3, 3), (4, 6), (6, 6), (7, None)])
def test_weight_is_measured_after_the_first_round_with_another_posterior_network(every, step):
    """Two rounds of three updates; before, both networks are one and agree."""
    config = make_config({"em.refresh_every": every})
    assert second_view.measured_at(config) == step


def given_weight(monkeypatch):
    """A weight that follows the counts; returns the steps at which it is measured."""
    measured = []
    real = second_view.measure_once

    def noted(view, step, *arguments):
        gamma = real(view, step, *arguments)
        measured.extend([step] if gamma is not None else [])
        return gamma

    def weight(counts, tolerance):
        assert counts.confident
        return float(np.float32((1 + counts.contradictions) / (2 + counts.confident)))

    monkeypatch.setattr(em, "CONFIDENT", 0.3)
    monkeypatch.setattr(em.ViewCounts, "weight", weight)
    monkeypatch.setattr(rounds, "measure_once", noted)
    return measured


def test_weight_acts_from_the_round_after_its_measurement(tmp_path, monkeypatch):
    measured = given_weight(monkeypatch)
    every = {"em.posterior": "paired", "adapt.rounds": 3, "em.start_step": 3}
    paired, loop_state = adapt(tmp_path / "paired", every)
    assert measured == [3] and 0 < loop_state["em"]["gamma"] < 1
    papers, other_loop_state = adapt(tmp_path / "papers", every | {"em.posterior": "target"})
    # It is measured there too, for inference on both images, and weighs nothing.
    assert other_loop_state["em"] == loop_state["em"]
    assert differ(paired["params"], papers["params"])
    views = loop_state["posterior"][-1]["views"]
    assert set(views) == {"used", "own", "second_view"} and views["used"] != views["own"]
    views = other_loop_state["posterior"][-1]["views"]
    assert views["used"] == views["own"]


def test_soft_labels_of_many_images_are_audited_on_some(tmp_path, monkeypatch):
    """Spread over all of them, which the weight and the training still see."""
    given_weight(monkeypatch)
    settings = {"em.posterior": "paired", "adapt.rounds": 3, "evaluate.validation_images": 2}
    test = dataclasses.replace(TARGET)
    whole, of_all = adapt(tmp_path / "whole", settings, target_test=test)
    monkeypatch.setattr(rounds, "_AUDITED", 3)
    network, of_some = adapt(tmp_path / "some", settings, target_test=test)
    assert_same_bits(network, whole)
    assert of_some["em"] == of_all["em"]
    rows = np.arange(3) * len(TARGET.labels) // 3
    for loop_state, labels in ((of_all, TARGET.labels), (of_some, TARGET.labels[rows])):
        counts = np.bincount(labels, minlength=CLASSES).tolist()
        assert loop_state["posterior"][-1]["images"] == counts
    assert of_some["last"]["target_test"] == of_all["last"]["target_test"]
    # At least those that the validators use.
    more = settings | {"evaluate.validation_images": 5}
    _, of_more = adapt(tmp_path / "more", more, target_test=test)
    assert sum(of_more["posterior"][-1]["images"]) == 5
    # Of a target domain that is tested on its training images, all are.
    _, of_all = adapt(tmp_path / "same", settings)
    assert sum(of_all["posterior"][-1]["images"]) == len(TARGET.labels)


@pytest.mark.parametrize("validator", ["information", "neighbourhood_density", "entropy"])
def test_log_line_of_a_round_has_the_score_that_selects(tmp_path, capsys, validator):
    adapt(tmp_path, {"evaluate.validator": validator})
    (line, *_) = (line for line in capsys.readouterr().err.splitlines() if "target_test" in line)
    names = {"information", "neighbourhood_density", "entropy"}
    assert names & set(line.split()) == {validator}


def test_without_a_new_posterior_network_there_is_no_weight(tmp_path, monkeypatch):
    measured = given_weight(monkeypatch)
    _, loop_state = adapt(tmp_path, {"em.refresh_every": 7, "em.start_step": 7})
    assert measured == [] and loop_state["em"] == {"gamma": 0.0}


@pytest.mark.parametrize("where", ["before", "during", "after", "a round later"])
def test_killed_run_has_the_same_weight(tmp_path, monkeypatch, where):
    """A round later it is restored with the state, and not measured again."""
    measured = given_weight(monkeypatch)
    settings = {"em.posterior": "paired", "adapt.rounds": 3}
    _, whole = adapt(tmp_path / "whole", settings)
    place, name, calls = {
        "before": (rounds, "measure_once", 1),
        "during": (em, "count_views", 1),
        "after": (rounds.RoundEnd, "__call__", 1),
        "a round later": (rounds.RoundEnd, "__call__", 2),
    }[where]
    real, left = getattr(place, name), itertools.count(1)

    def killed(*arguments, **named):
        if next(left) == calls:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, name, killed)
        adapt(tmp_path / "killed", settings)
    measured.clear()
    _, loop_state = adapt(tmp_path / "killed", settings)
    assert measured == ([] if where == "a round later" else [3])
    assert loop_state["em"] == whole["em"] and loop_state["sha256"] == whole["sha256"]


# Alignment


def test_beta_zero_measures_the_alignment_without_its_gradient():
    states, lines = train(2, settings={"adapt.beta": 0.0})
    others, other_lines = train(2, settings={"adapt.beta": 0.0, "adapt.measure": "l1"})
    aligned, aligned_lines = train(2)
    assert_same_bits(states[-1].target, others[-1].target)
    assert differ(states[-1].target["params"], aligned[-1].target["params"])
    assert lines[0]["alignment"][0] > 0.01
    np.testing.assert_allclose(lines[0]["alignment"], aligned_lines[0]["alignment"], rtol=1e-5)
    assert other_lines[0]["alignment"][0] > lines[0]["alignment"][0]
    for line in (*lines, *aligned_lines):
        beta = 0.1 if line in aligned_lines else 0
        parts = line["cross_entropy"][0] + line["em"][0] + beta * line["alignment"][0]
        np.testing.assert_allclose(line["loss"][0], parts, rtol=1e-5)


def test_frozen_batch_norm_keeps_the_statistics_and_agrees_with_the_source_at_step_0():
    same = make_state(target_seed=0)
    states, lines = train(2, same, mix("S") | {"adapt.batch_norm": "frozen"})
    # Two layers, each the smoothing of Eq. 5.
    np.testing.assert_allclose(lines[0]["alignment"][0], 2e-4, rtol=0.05)
    assert lines[1]["alignment"][0] > 1e-3
    assert_same_bits(states[-1].target["batch_stats"], same.target["batch_stats"])
    trained = states[-1].target["params"]["norm1"]
    for name in ("scale", "bias"):
        assert differ(trained[name], same.target["params"]["norm1"][name])
    states, _ = train(1, same, mix("S"))
    assert differ(states[-1].target["batch_stats"], same.target["batch_stats"])


# The mixes of the tables


@pytest.mark.parametrize("name", MIXES)
def test_mix_of_a_table_is_a_setting(name):
    states, (line,) = train(1, settings=mix(name))
    sizes = adaptation.group_sizes(8, MIXES[name])
    targets = sum(sizes[2:])
    assert line["kept"][1] == line["confidence"][1] == targets
    assert line["accuracy"][1] == 8 - targets
    assert (line["em"][0] > 0) == (targets > 0)
    assert line["cross_entropy"][0] > 0 and line["alignment"][0] > 0
    assert differ(states[1].target["params"], states[0].target["params"])


@pytest.mark.parametrize("name", ["S", "T_f", "S+T_f"])
def test_without_target_groups_no_posterior_is_computed(name):
    step, stream = compiled(tuple(sorted(mix(name).items())))
    state = make_state()
    broken = state.replace(posterior=jax.tree.map(lambda x: x * jnp.nan, state.posterior))
    assert stream.at(0).posterior.rows.shape == (0,)
    after, metrics = step(broken, gather([IMAGES], stream.at(0)))
    assert_same_bits(after.target, step(state, gather([IMAGES], stream.at(0)))[0].target)
    assert np.isfinite(float(metrics["loss"].total))


# The stage as a whole


def adapt(
    workdir, settings=(), target_labels=TARGET.labels, keep=lambda *_: None, target_test=None
):
    config = make_config(dict(settings))
    target = dataclasses.replace(TARGET, labels=target_labels)
    measured = MeasuredData(
        source_test=SOURCE, target_test=target_test or target, target_train=target
    )
    with make_context(workdir, config) as context:
        evaluate = evaluation.make_evaluator(
            MODEL, context.mesh, make_config({"evaluate.batch_size": 8, "em.threshold": 0.5})
        )
        training = adaptation.target_training(
            config, MODEL, variables_of(0), IMAGES, SOURCE.labels, 1
        )
        return rounds.run(training, config, evaluate, measured, context, keep)


@dataclasses.dataclass
class Start:
    """What a stage sets up before its first step: the state, and the optimiser."""

    state: Any = None
    optimizer: optax.GradientTransformation | None = None


def start(monkeypatch, run_stage):
    started = Start()
    make = optimizers.make

    def noted(*args, **kwargs):
        started.optimizer = make(*args, **kwargs)
        return started.optimizer

    def loop_of_no_steps(name, create_state, *args, **kwargs):
        started.state = create_state()
        return started.state, {}

    with monkeypatch.context() as patch:
        patch.setattr(optimizers, "make", noted)
        patch.setattr(loop, "run", loop_of_no_steps)
        run_stage()
    return started


def test_target_labels_affect_only_the_metrics(tmp_path):
    variables, loop_state = adapt(tmp_path / "right")
    others, other_loop_state = adapt(
        tmp_path / "wrong", target_labels=(TARGET.labels + 1) % CLASSES
    )
    assert_same_bits(variables, others)
    assert loop_state["sha256"] == other_loop_state["sha256"]
    for name in ("step", "information", "source_test"):
        assert loop_state["selected"][name] == other_loop_state["selected"][name]
    assert loop_state["last"]["target_test"] != other_loop_state["last"]["target_test"]


@pytest.mark.parametrize(
    ("changes", "every"),
    [
        ({}, 3),  # N is a round
        ({"em.refresh_every": 2, "em.start_step": 2}, 2),  # with each sync of M^post
        ({"em.refresh_every": 1}, 3),  # EM-A differs in A alone
        ({"adapt.restart": False}, 6),  # EM-C does not restart
        ({"adapt.mix.t": 0.0, "adapt.mix.s_f": 0.0}, 6),  # no posterior is learnt from
        ({"adapt.mix.t": 0.0}, 3),
    ],
)
def test_learning_rate_restarts_with_each_sync_of_the_posterior_network(
    tmp_path, monkeypatch, changes, every
):
    changes = {"adapt.optimizer.schedule": "progress", **changes}
    optimizer = start(monkeypatch, lambda: adapt(tmp_path, changes)).optimizer
    state, rates = optimizer.init(jnp.zeros(())), []
    for _ in range(6):
        # Under a constant gradient of 1 a step of Adam is as long as the learning rate.
        change, state = optimizer.update(jnp.ones(()), state)
        rates.append(-float(change))
    np.testing.assert_allclose(
        rates, 1e-3 * (1 + 10 * (np.arange(6) % every / every)) ** -0.75, rtol=1e-4
    )


def test_target_starts_from_the_source_network_and_shares_no_buffer_with_it(tmp_path, monkeypatch):
    state = start(monkeypatch, lambda: adapt(tmp_path)).state
    parts = (state.source, state.target, state.posterior)
    for part in parts:
        assert_same_bits(part, variables_of(0))
    leaves = [leaf for part in (*parts, variables_of(0)) for leaf in jax.tree.leaves(part)]
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_target_from_scratch_starts_elsewhere_than_the_source_network_did(tmp_path, monkeypatch):
    state = start(monkeypatch, lambda: adapt(tmp_path, {"adapt.init": "scratch"})).state
    assert_same_bits(state.target, state.posterior)
    assert_same_bits(state.source, variables_of(0))

    def train_source():
        config = make_config()
        with make_context(tmp_path, config) as context:
            source.run(config, MODEL, SOURCE, lambda _: {}, context)

    source_start = start(monkeypatch, train_source).state
    for other in (source_start.variables, state.source):
        kernel = other["params"]["convolution1"]["kernel"]
        assert differ(state.target["params"]["convolution1"]["kernel"], kernel)
    # Nor do the two stages draw the same shifts.
    assert differ(jax.random.key_data(state.key), jax.random.key_data(source_start.key))
