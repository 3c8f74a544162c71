"""Batches are a pure function of (seed, name, step), and an epoch shows every image once."""

import numpy as np
import pytest

from daaa_jax.data.batches import IndexStream


def read(stream: IndexStream, steps: range) -> np.ndarray:
    return np.concatenate([stream.at(step) for step in steps])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_epoch_shows_every_image_once(batch_size):
    epochs = read(IndexStream(7, batch_size, seed=0, name="source"), range(70))
    whole = epochs[: len(epochs) // 7 * 7].reshape(-1, 7)
    np.testing.assert_array_equal(np.sort(whole), np.tile(np.arange(7), (len(whole), 1)))
    assert len(np.unique(whole, axis=0)) > 1


def test_batch_may_be_larger_than_the_set():
    batch = IndexStream(3, 10, seed=0, name="source").at(2)
    assert batch.shape == (10,) and batch.dtype == np.int32
    assert set(batch.tolist()) == {0, 1, 2}


def test_steps_may_be_asked_in_any_order_and_by_a_fresh_stream():
    stream = IndexStream(11, 4, seed=5, name="target")
    forwards = [stream.at(step) for step in range(40)]
    for step in (39, 0, 17, 3, 38, 17):
        np.testing.assert_array_equal(stream.at(step), forwards[step])
        fresh = IndexStream(11, 4, seed=5, name="target")
        np.testing.assert_array_equal(fresh.at(step), forwards[step])


def test_late_step_needs_no_step_before_it():
    assert IndexStream(60000, 128, seed=0, name="source").at(10**9).shape == (128,)


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "target"}])
def test_streams_of_another_seed_or_name_differ(other):
    first = {"size": 1000, "batch_size": 1000, "seed": 0, "name": "source"}
    same_places = IndexStream(**first).at(0) == IndexStream(**(first | other)).at(0)
    assert same_places.mean() < 0.02


@pytest.mark.parametrize(("size", "batch_size"), [(0, 4), (4, 0), (4, -1)])
def test_empty_stream_is_refused_by_name(size, batch_size):
    with pytest.raises(ValueError, match=r"\bsource\b"):
        IndexStream(size, batch_size, seed=0, name="source")
