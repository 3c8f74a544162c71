"""One adaptation step: the four groups of a batch, which network sees which images, Eq. 12."""

import dataclasses
import functools
import re
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from consumed_keys import assert_drawn_once
from ml_collections import ConfigDict
from tiny import CLASSES, MODEL, assert_same_bits, make_config, make_images, make_labelled

from daaa_jax import adaptation, losses
from daaa_jax.data.augment import decode
from daaa_jax.data.batches import gather
from daaa_jax.data.pairs import BatchStream, all_images
from daaa_jax.data.types import Task, UnlabelledImages
from daaa_jax.models import initial_variables

SOURCE, TARGET = make_labelled(10, seed=1), make_images(7, seed=2)
# A translation is its original's negative: the pixels show which of them a network sees.
IMAGES = np.asarray(all_images(SOURCE.images, 255 - SOURCE.images, TARGET, 255 - TARGET))
PAPER = (0.35, 0.15, 0.35, 0.15)


# Group sizes


def test_group_sizes_follow_the_proportions():
    assert adaptation.group_sizes(128, PAPER) == (45, 19, 45, 19)
    assert adaptation.group_sizes(10, (0.35, 0.15, 0, 0)) == (7, 3, 0, 0)
    mix = {"s": 0.5, "t_f": 0.0, "t": 0.35, "s_f": 0.15}
    adapt = {"batch_size": 16, "mix": mix, "rounds": 2, "round_steps": 10}
    config = ConfigDict({"adapt": adapt, "em": {"start_step": 19}})
    assert adaptation.batch_line(config).endswith("8 s, 6 t, 2 s_f")
    config.em.start_step = 20
    assert adaptation.batch_line(config).endswith("; no EM, as em.start_step=20 of 20 updates")
    config.adapt.mix.update(t=0.0, s_f=0.0)
    assert adaptation.batch_line(config).endswith("16 s")
    assert adaptation.group_sizes(72, (0, 0.15, 0.35, 0)) == (0, 22, 50, 0)


def test_ties_go_to_the_earlier_group():
    assert adaptation.group_sizes(10, PAPER) == (4, 2, 3, 1)
    assert adaptation.group_sizes(2, (1, 1, 1, 1)) == (1, 1, 0, 0)
    assert adaptation.group_sizes(7, (0.1, 0.1, 0.1, 0.1)) == (2, 2, 2, 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 16, 100, 127, 1024])
@pytest.mark.parametrize("mix", [PAPER, (1, 0, 0, 0), (0, 0, 1, 2), (0.3, 0.3, 0.3, 0.1)])
def test_group_sizes_fill_the_batch_within_one_of_the_share(batch, mix):
    sizes = adaptation.group_sizes(batch, mix)
    assert sum(sizes) == batch
    for size, share in zip(sizes, mix, strict=True):
        assert abs(size - batch * share / sum(mix)) < 1
        assert share or not size


@pytest.mark.parametrize("mix", [(0, 0, 0, 0), (1, 1, 1, -1)])
def test_negative_or_all_zero_proportions_are_refused(mix):
    with pytest.raises(ValueError, match=rf"proportions.*{re.escape(str(mix))}"):
        adaptation.group_sizes(8, mix)


# The batch, by the table of section 3


def test_each_network_sees_the_image_of_its_column():
    sizes = (4, 3, 2, 3)
    s, t_f, t, s_f = np.split(np.arange(12), np.cumsum(sizes)[:-1])
    stream = BatchStream(SOURCE.labels, len(TARGET), sizes, seed=0)
    for step in range(12):
        batch = stream.at(step)
        by_target, by_source = IMAGES[batch.target.rows], IMAGES[batch.source.rows]
        posterior = IMAGES[batch.posterior.rows]
        originals = {len(SOURCE.images): SOURCE.images, len(TARGET): TARGET}
        real_source, real_target = originals.values()

        def are_of(images, originals):
            return all((original == originals).all((1, 2, 3)).any() for original in images)

        # real source:       x^S                x^S
        assert are_of(by_target[s], real_source)
        np.testing.assert_array_equal(by_source[s], by_target[s])
        # synthetic target:  G_ST(x^S)          x^S
        assert are_of(by_source[t_f], real_source)
        np.testing.assert_array_equal(by_target[t_f], 255 - by_source[t_f])
        # real target:       x^T                G_TS(x^T)      p_post(z | x^T)
        assert are_of(by_target[t], real_target)
        np.testing.assert_array_equal(by_source[t], 255 - by_target[t])
        np.testing.assert_array_equal(posterior[: len(t)], by_target[t])
        # synthetic source:  G_TS(x^T)          G_TS(x^T)      p_post(z | x^T), the real original
        np.testing.assert_array_equal(by_source[s_f], by_target[s_f])
        assert are_of(posterior[len(t) :], real_target)
        np.testing.assert_array_equal(posterior[len(t) :], 255 - by_target[s_f])

        by_row = {
            row.tobytes(): label for row, label in zip(*dataclasses.astuple(SOURCE), strict=True)
        }
        wanted = [by_row[row.tobytes()] for row in by_source[: len(s) + len(t_f)]]
        np.testing.assert_array_equal(batch.labels, [*wanted, *[0] * (len(t) + len(s_f))])


def test_groups_are_independent_draws_of_every_image_equally_often():
    sizes = (5, 5, 7, 7)
    stream = BatchStream(SOURCE.labels, len(TARGET), sizes, seed=0)
    batches = [stream.at(step) for step in range(20)]
    rows = np.stack([batch.target.rows for batch in batches])
    columns = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    for column, begin, count in zip(columns, (0, 10, 20, 27), (10, 10, 7, 7), strict=True):
        drawn = np.bincount(column.ravel() - begin, minlength=count)
        assert (drawn == column.size / count).all()
    assert (columns[0] != columns[1] - 10).any() and (columns[2] != columns[3] - 7).any()


def test_batch_is_a_function_of_seed_and_step_and_padding_reads_real_rows():
    def stream(seed, multiple=1):
        return BatchStream(SOURCE.labels, len(TARGET), (4, 3, 2, 3), seed, multiple)

    late, early = stream(0), stream(0)
    for step in range(5):
        early.at(step)
    assert_same_bits(early.at(5), late.at(5))
    assert (stream(1).at(5).target.rows != late.at(5).target.rows).any()

    plain, padded = late.at(5), stream(0, multiple=8).at(5)
    assert padded.posterior.rows.shape == (8,)
    np.testing.assert_array_equal(padded.posterior.rows[:5], plain.posterior.rows)
    np.testing.assert_array_equal(padded.target.rows, plain.target.rows)


def test_target_domain_has_no_labels_by_type():
    assert [field.name for field in dataclasses.fields(UnlabelledImages)] == ["images"]
    assert typing.get_type_hints(Task)["target_train"] is UnlabelledImages


# The step: views and networks


class Witness:
    """A classifier that records the images that each of the three networks is applied to."""

    def __init__(self, state):
        self.by_network = {
            id(jax.tree.leaves(getattr(state, name)["batch_stats"])[0]): name
            for name in ("source", "target", "posterior")
        }
        self.seen = {}

    def apply(self, variables, images, **options):
        name = self.by_network[id(jax.tree.leaves(variables["batch_stats"])[0])]
        assert name not in self.seen
        self.seen[name] = types.SimpleNamespace(images=np.asarray(images), train=options["train"])
        maps = {"conv1": (jnp.ones((len(images), 4)) * variables["params"]["w"],)}
        logits = images.mean((1, 2)) @ jnp.ones((3, CLASSES)) * variables["params"]["w"]
        return (logits, {"intermediates": maps}) if "mutable" in options else logits


def seen_in_a_step(changes) -> tuple:
    """What the source, the target and the posterior network see, the batch, and the groups."""
    defaults = {"adapt.batch_size": 12, "augment.shift": 3, "adapt.recolour": 0.0}
    config = make_config(defaults | changes)
    sizes = adaptation.group_sizes(12, PAPER)
    batch = BatchStream(SOURCE.labels, len(TARGET), sizes, seed=0, multiple=8).at(0)
    variables = {"params": {"w": jnp.ones(())}, "batch_stats": {"mean": jnp.zeros(2)}}
    optimizer = optax.sgd(0.1)
    state = adaptation.create_state(jax.random.key(0), variables, variables, optimizer)
    witness = Witness(state)
    images = gather([IMAGES], batch)
    adaptation.train_step(state, images, model=witness, optimizer=optimizer, config=config)
    ends = np.cumsum(sizes)
    groups = [slice(*places) for places in zip([0, *ends], ends, strict=False)]
    return *(witness.seen[name] for name in ("source", "target", "posterior")), batch, groups


def test_views_and_colours_are_drawn_from_keys_of_their_own(monkeypatch):
    config = make_config({"adapt.batch_size": 12, "augment.shift": 3})
    batch = BatchStream(SOURCE.labels, len(TARGET), adaptation.group_sizes(12, PAPER), seed=0).at(0)
    variables = initial_variables(jax.random.key(0), MODEL, decode(IMAGES[:1]))
    optimizer, seen = optax.sgd(0.1), []
    state = adaptation.create_state(jax.random.key(0), variables, variables, optimizer)
    monkeypatch.setattr(
        adaptation,
        "recolour",
        lambda key, images, strength: (seen.append(jax.random.uniform(key)), images)[1],
    )
    step = functools.partial(adaptation.train_step, state, gather([IMAGES], batch))
    assert_drawn_once(monkeypatch, lambda: step(model=MODEL, optimizer=optimizer, config=config))
    assert len(seen) == 1


@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
def test_images_of_a_pair_get_the_same_view_and_only_the_target_network_trains(batch_norm):
    source, target, posterior, batch, (s, t_f, t, s_f) = seen_in_a_step(
        {"adapt.batch_norm": batch_norm}
    )
    assert (source.train, posterior.train) == (False, False)
    assert target.train == (batch_norm == "batch")

    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    close(source.images[s], target.images[s])
    close(source.images[t_f], -target.images[t_f])
    close(source.images[t], -target.images[t])
    close(source.images[s_f], target.images[s_f])
    reals = t.stop - t.start
    close(posterior.images[:reals], target.images[t])
    close(posterior.images[reals : s_f.stop - t.start], -target.images[s_f])

    # The views are shifts of up to three pixels with repeated edges, not all the same.
    margins = ((3, 3), (3, 3), (0, 0))
    corners = []
    for row, shown in zip(batch.target.rows, target.images, strict=True):
        padded = np.pad(IMAGES[row] / np.float32(127.5) - 1, margins, mode="edge")
        fits = [
            (top, left)
            for top in range(7)
            for left in range(7)
            if np.allclose(padded[top : top + 32, left : left + 32], shown, atol=1e-6)
        ]
        assert fits
        corners += fits[:1]
    assert len(set(corners)) > 4


def test_only_what_the_target_network_learns_from_in_the_targets_style_is_recoloured():
    plain, recoloured = (seen_in_a_step({"adapt.recolour": strength}) for strength in (0.0, 0.5))
    _, t_f, t, _ = plain[-1]
    changed = np.zeros(12, bool)
    changed[t_f], changed[t] = True, True
    for name, before, after in zip(
        ("source", "target", "posterior"), plain, recoloured, strict=False
    ):
        other = np.abs(before.images - after.images).max(axis=(1, 2, 3)) > 0.05
        np.testing.assert_array_equal(other, changed if name == "target" else False)


# Eq. 12


@pytest.mark.parametrize(
    ("name", "term"),
    [("confusion", losses.class_confusion), ("information", losses.negative_information)],
)
def test_losses_of_others_are_of_real_target_images(name, term):
    """And are added to the loss with their weight."""
    logged, taken = {}, []
    for weight in (0.0, 0.5):
        config = make_config({"adapt.batch_size": 12, f"adapt.{name}": weight})
        sizes = adaptation.group_sizes(12, PAPER)
        batch = BatchStream(SOURCE.labels, len(TARGET), sizes, seed=0, multiple=8).at(0)
        variables = {"params": {"w": jnp.ones(())}, "batch_stats": {"mean": jnp.zeros(2)}}
        state = adaptation.create_state(jax.random.key(0), variables, variables, optax.sgd(0.1))
        witness = Witness(state)
        _, metrics = adaptation.train_step(
            state,
            gather([IMAGES], batch),
            model=witness,
            optimizer=optax.sgd(0.1),
            config=config,
        )
        logged[weight] = {key: float(metric.compute()) for key, metric in metrics.items()}
        first = sizes[0] + sizes[1]
        images = witness.seen["target"].images[first : first + sizes[2]]
        taken.append(images.mean((1, 2)) @ jnp.ones((3, CLASSES)))
    assert name not in logged[0.0]
    assert logged[0.5][name] == pytest.approx(0.5 * float(term(taken[1])), rel=1e-5)
    added = logged[0.5]["loss"] - logged[0.0]["loss"]
    assert added == pytest.approx(logged[0.5][name], abs=1e-5)


def objective_twin(logits, labels, posterior, kept, alignment, beta, em_weight, normalize):
    """Sample by sample, over those that the filter leaves."""
    logits = logits.astype(np.float64)
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    sources = len(logits) - len(posterior)
    supervised = sum(-logarithms[i][labels[i]] for i in range(sources)) / len(logits)
    filtered = [
        -sum(p * log for p, log in zip(posterior[i], logarithms[sources + i], strict=True))
        for i in range(len(posterior))
        if kept[i]
    ]
    divisor = len(logits) if normalize == "batch" else max(len(filtered), 1)
    return supervised + em_weight * sum(filtered) / divisor + beta * alignment


@pytest.mark.parametrize("normalize", ["batch", "kept"])
@pytest.mark.parametrize("kept", [(1, 0, 1, 0, 0), (0, 0, 0, 0, 0), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("em_weight", [0.0, 1.0])
def test_objective_is_that_of_the_kept_samples(normalize, kept, em_weight):
    draws = np.random.default_rng(0)
    logits = draws.normal(size=(9, CLASSES)).astype(np.float32)
    labels = draws.integers(0, CLASSES, 9)
    posterior = draws.dirichlet(np.ones(CLASSES), 5).astype(np.float32)
    weights = {"beta": 0.3, "em_weight": em_weight, "normalize": normalize}
    loss, parts = adaptation.objective(
        jnp.asarray(logits), labels, posterior, jnp.array(kept, jnp.float32), 1.7, **weights
    )
    twin = functools.partial(objective_twin, logits, labels, posterior, kept)
    np.testing.assert_allclose(loss, twin(1.7, **weights), rtol=1e-5)
    np.testing.assert_allclose(
        parts["cross_entropy"] + parts["em"], twin(0.0, **weights), rtol=1e-5
    )

    # Neither a discarded posterior nor a label of the target groups is read.
    others = np.where(np.array(kept)[:, None] == 1, posterior, posterior[:, ::-1])
    relabelled = np.where(np.arange(9) < 4, labels, (labels + 1) % CLASSES)
    again, _ = adaptation.objective(
        jnp.asarray(logits), relabelled, others, jnp.array(kept, jnp.float32), 1.7, **weights
    )
    assert again == loss


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match=r"em\.normalize.*mean.*batch.*kept"):
        adaptation.objective(
            jnp.zeros((1, 2)),
            jnp.zeros(1, int),
            jnp.zeros((0, 2)),
            jnp.zeros(0),
            0.0,
            beta=0.0,
            em_weight=1.0,
            normalize="mean",
        )
