"""Pixels become inputs in [-1, 1]; a view moves, crops and flips the images of a pair alike."""

import jax
import numpy as np
import pytest
from consumed_keys import assert_drawn_once
from ml_collections import ConfigDict
from PIL import Image

from daaa_jax.data.augment import (
    apply_views,
    decode,
    draw_views,
    evaluation_views,
    random_view,
    recolour,
)

KEY = jax.random.key(3)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), np.uint8)


def settings(**changes) -> ConfigDict:
    return ConfigDict({"shift": 0, "crop": 0, "area": 1.0, "flip": False} | changes)


def slow_views(batch: np.ndarray, views, how: ConfigDict) -> np.ndarray:
    """Pixel by pixel; what lies outside is the nearest pixel inside."""
    size = batch.shape[1]
    crop = how.crop or size
    seen = np.empty((len(batch), crop, crop, 3), batch.dtype)
    for b, y, x in np.ndindex(seen.shape[:3]):
        across = crop - 1 - x if views.flipped[b] else x
        row = min(max(y + int(views.offsets[b, 0]) - how.shift, 0), size - 1)
        column = min(max(across + int(views.offsets[b, 1]) - how.shift, 0), size - 1)
        seen[b, y, x] = batch[b, row, column]
    return seen


def test_places_and_flips_are_drawn_from_separate_keys(monkeypatch):
    for how in (settings(shift=1, flip=True), settings(shift=1, area=0.5, flip=True)):
        assert_drawn_once(monkeypatch, lambda how=how: draw_views(KEY, 5, 6, how))


HOW = [
    {"shift": 1},
    {"shift": 4},
    {"crop": 4},
    {"crop": 4, "flip": True},
    {"shift": 2, "crop": 5, "flip": True},
]


def test_decode_spans_minus_one_to_one():
    decoded = decode(np.array([0, 127, 128, 255], np.uint8))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, [-1, -1 / 255, 1 / 255, 1], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("how", HOW)
def test_view_is_that_of_the_slow_twin(how, dtype):
    batch, how = images(9).astype(dtype), settings(**how)
    views = draw_views(KEY, 9, 6, how)
    seen = jax.jit(lambda batch, views: apply_views(batch, views, how))(batch, views)
    assert seen.dtype == dtype
    np.testing.assert_array_equal(seen, slow_views(batch, views, how))


def test_crops_of_a_random_area_are_those_of_pillow():
    """Pillow's `box` is a crop and a bilinear, antialiased resize in one."""
    how = settings(crop=5, area=0.3, flip=True)
    batch = np.asarray(decode(np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3))))
    views = draw_views(KEY, 6, 12, how)
    seen = jax.jit(lambda batch, views: apply_views(batch, views, how))(batch, views)
    assert seen.shape == (6, 5, 5, 3)
    for number, image in enumerate(batch):
        (top, left), (height, width) = views.offsets[number], views.sizes[number]
        box = tuple(map(float, (left, top, left + width, top + height)))
        for channel in range(3):
            plane = Image.fromarray(image[..., channel])
            cut = np.asarray(plane.resize((5, 5), Image.Resampling.BILINEAR, box))
            cut = cut[:, ::-1] if views.flipped[number] else cut
            np.testing.assert_allclose(seen[number, ..., channel], cut, atol=1e-4)


def test_random_areas_and_aspect_ratios_fill_their_ranges():
    views = draw_views(KEY, 20_000, 10, settings(shift=1, crop=4, area=0.25))
    offsets, sizes = np.asarray(views.offsets), np.asarray(views.sizes)
    assert (offsets >= 0).all() and (offsets + sizes <= 12 + 1e-5).all()
    inside = (sizes < 11.9).all(axis=1)
    shares, aspects = sizes.prod(axis=1) / 144, sizes[:, 0] / sizes[:, 1]
    assert shares.min() == pytest.approx(0.25, abs=0.01) and shares.max() > 0.95
    assert aspects[inside].min() == pytest.approx(3 / 4, abs=0.01)
    assert aspects[inside].max() == pytest.approx(4 / 3, abs=0.01)
    np.testing.assert_allclose(np.quantile(shares[shares < 0.7], 0.5), (0.25 + 0.7) / 2, atol=0.01)
    starts = (offsets / np.maximum(12 - sizes, 1e-6))[inside]
    np.testing.assert_allclose(starts.mean(axis=0), 0.5, atol=0.02)


def test_view_that_changes_nothing_is_the_identity():
    batch = images(4)
    np.testing.assert_array_equal(random_view(KEY, batch, settings()), batch)
    np.testing.assert_array_equal(random_view(KEY, batch, settings(crop=6)), batch)


def test_crops_reach_every_place_and_never_pass_the_edge():
    views = draw_views(KEY, 2000, 6, settings(shift=1, crop=4, flip=True))
    for direction in np.asarray(views.offsets).T:
        counts = np.bincount(direction, minlength=5)
        assert len(counts) == 5 and counts.min() > 300
    assert 900 < int(views.flipped.sum()) < 1100


def test_nothing_is_flipped_unless_it_is_wanted():
    assert not draw_views(KEY, 1000, 6, settings(shift=1)).flipped.any()


@pytest.mark.parametrize("how", HOW)
def test_one_draw_changes_both_images_of_a_pair_alike(how):
    first, second, how = images(8, seed=0), images(8, seed=1), settings(**how)
    views = draw_views(KEY, 8, 6, how)
    together = apply_views(np.concatenate([first, second], axis=-1), views, how)
    np.testing.assert_array_equal(together[..., :3], apply_views(first, views, how))
    np.testing.assert_array_equal(together[..., 3:], apply_views(second, views, how))


def test_another_key_gives_other_views():
    how = settings(shift=2, flip=True)
    one, other = (draw_views(jax.random.key(seed), 100, 6, how) for seed in (3, 4))
    assert (np.asarray(one.offsets) != other.offsets).mean() > 0.6
    assert 0.3 < (np.asarray(one.flipped) != other.flipped).mean() < 0.7


def test_image_is_evaluated_at_its_centre_or_on_ten_crops():
    batch = images(2)
    np.testing.assert_array_equal(
        evaluation_views(batch, settings(crop=4), 1), batch[None, :, 1:5, 1:5]
    )
    ten = np.asarray(evaluation_views(batch, settings(crop=4), 10))
    assert ten.shape == (10, 2, 4, 4, 3)
    np.testing.assert_array_equal(ten[3], batch[:, 2:, 2:])
    np.testing.assert_array_equal(ten[5:], ten[:5, :, :, ::-1])
    np.testing.assert_array_equal(evaluation_views(batch, settings(shift=2), 1)[0], batch)
    with pytest.raises(ValueError, match=r"evaluate\.crops=3\b.*\b1\b.*\b10\b"):
        evaluation_views(batch, settings(crop=4), 3)


def test_recolouring_is_a_linear_map_of_each_images_colours():
    before = 0.2 * decode(images(3))  # so small that nothing is cut off
    after = np.asarray(recolour(KEY, before, np.array([0.5, 0.0, 0.5])))
    for image, changed in zip(np.asarray(before), after, strict=True):
        colours, found = image.reshape(-1, 3), changed.reshape(-1, 3)
        fitted, *_ = np.linalg.lstsq(colours, found, rcond=None)
        np.testing.assert_allclose(colours @ fitted, found, atol=1e-6)
    assert np.abs(after - before).max(axis=(1, 2, 3))[[0, 2]].min() > 0.05
    np.testing.assert_array_equal(after[1], before[1])


def test_recolouring_draws_normal_maps_and_stays_in_range():
    corners = np.tile(np.eye(3, dtype=np.float32) / 8, (4000, 1, 1, 1))  # a pixel for each channel
    maps = 8 * (np.asarray(recolour(KEY, corners, 0.5)) - corners)
    assert maps.mean() == pytest.approx(0, abs=0.01) and maps.std() == pytest.approx(0.5, rel=0.02)
    strong = np.asarray(recolour(KEY, decode(images(50)), 3.0))
    assert strong.min() == -1 and strong.max() == 1
