"""Stage `source`: whose statistics normalise while the source network trains."""

import functools

import jax
import numpy as np
import pytest
from tiny import MODEL, make_config, make_labelled

from daaa_jax import optimizers, source
from daaa_jax.data.augment import decode

DATA = make_labelled(8)


@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
def test_frozen_batch_norm_keeps_the_statistics_that_training_began_with(batch_norm):
    config = make_config({"augment.shift": 0})
    optimizer = optimizers.make(config.source.optimizer, total_steps=4)
    image = decode(DATA.images[:1])
    begun = source.create_state(jax.random.key(0), MODEL, optimizer, image)
    settings = {"augment": config.augment, "batch_norm": batch_norm}
    step = functools.partial(source.train_step, model=MODEL, optimizer=optimizer, **settings)
    state, metrics = jax.jit(step)(begun, DATA.images, np.arange(8), DATA.labels)
    before, after = (jax.tree.leaves(each.variables["batch_stats"]) for each in (begun, state))
    same = [np.array_equal(old, new) for old, new in zip(before, after, strict=True)]
    assert all(same) if batch_norm == "frozen" else not any(same)
    # And they are what normalised: the loss is that of the network in evaluation, or is not.
    logits = MODEL.apply(begun.variables, decode(DATA.images), train=False)
    loss = -jax.nn.log_softmax(logits)[np.arange(8), DATA.labels].mean()
    found = metrics["loss"].total / metrics["loss"].count
    assert np.isclose(found, loss, rtol=1e-4) == (batch_norm == "frozen")
