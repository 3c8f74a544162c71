"""Pixels become inputs in [-1, 1]; a shift moves the images of a pair alike."""

import jax
import numpy as np
import pytest

from daaa_jax.data.augment import apply_shifts, decode, draw_shifts, random_shift

KEY = jax.random.key(3)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5, 3), np.uint8)


def slow_shift(batch: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Pixel by pixel; what lies outside is the nearest pixel inside."""
    shifted = np.empty_like(batch)
    _, height, width, _ = batch.shape
    for b, y, x in np.ndindex(batch.shape[:3]):
        row = min(max(y + shifts[b, 0], 0), height - 1)
        column = min(max(x + shifts[b, 1], 0), width - 1)
        shifted[b, y, x] = batch[b, row, column]
    return shifted


def test_decode_spans_minus_one_to_one():
    decoded = decode(np.array([0, 127, 128, 255], np.uint8))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, [-1, -1 / 255, 1 / 255, 1], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shift", [1, 2, 4])
def test_shift_is_that_of_the_slow_twin(shift, dtype):
    batch = images(9).astype(dtype)
    shifts = draw_shifts(KEY, 9, shift)
    shifted = jax.jit(apply_shifts, static_argnums=2)(batch, shifts, shift)
    assert shifted.dtype == dtype
    np.testing.assert_array_equal(shifted, slow_shift(batch, np.asarray(shifts)))


def test_shift_of_zero_is_the_identity():
    batch = images(4)
    np.testing.assert_array_equal(random_shift(KEY, batch, 0), batch)


def test_shifts_reach_both_bounds_and_never_pass_them():
    shifts = np.asarray(draw_shifts(KEY, 2000, 2))
    for direction in shifts.T:
        counts = np.bincount(direction + 2, minlength=5)
        assert len(counts) == 5 and counts.min() > 300


def test_one_draw_moves_both_images_of_a_pair_alike():
    first, second = images(8, seed=0), images(8, seed=1)
    shifts = draw_shifts(KEY, 8, 2)
    together = apply_shifts(np.concatenate([first, second], axis=-1), shifts, 2)
    np.testing.assert_array_equal(together[..., :3], apply_shifts(first, shifts, 2))
    np.testing.assert_array_equal(together[..., 3:], apply_shifts(second, shifts, 2))


def test_another_key_gives_other_shifts():
    other = draw_shifts(jax.random.key(4), 100, 2)
    assert (np.asarray(draw_shifts(KEY, 100, 2)) != other).mean() > 0.6
