"""The distance between colours: its formula, what it distinguishes, and that order is ignored."""

import numpy as np
import pytest

from daaa_jax.data.images import Images
from daaa_jax.evaluation import diagnostics

DRAWS = np.random.default_rng(0)


def images_of(colour, count=40, spread=20):
    """Images of one colour each, around a mean colour."""
    each = np.asarray(colour) + DRAWS.integers(-spread, spread + 1, (count, 3))
    return np.broadcast_to(each[:, None, None], (count, 4, 4, 3)).astype(np.uint8)


def distance(images, others):
    return diagnostics.energy_distance(
        diagnostics.mean_colours(images), diagnostics.mean_colours(others)
    )


def plain_distance(x, y):
    def mean(a, b):
        return np.mean([np.linalg.norm(p - q) for p in a for q in b])

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def test_distance_is_the_energy_distance_of_mean_colours():
    images = DRAWS.integers(0, 256, (30, 4, 4, 3)).astype(np.uint8)
    others = images_of((90, 120, 40))
    x, y = ((each / 127.5 - 1).mean(axis=(1, 2)) for each in (images, others))
    assert distance(images, others) == pytest.approx(plain_distance(x, y), rel=1e-9)


def test_distance_of_the_same_colours_in_any_order_is_zero():
    images = images_of((90, 120, 40))
    assert distance(images, images[::-1]) == pytest.approx(0, abs=1e-12)
    assert distance(images, Images(images[:7], images[7:])) == pytest.approx(0, abs=1e-12)


def test_few_colours_are_farther_than_all_of_them():
    real = np.concatenate([images_of((40, 40, 160)), images_of((160, 120, 40))])
    again = np.concatenate([images_of((40, 40, 160)), images_of((160, 120, 40))])
    assert distance(real[::2], real) < distance(again[:40], real) / 5


def test_translations_are_compared_with_the_domain_that_they_are_translated_to():
    dark, light = images_of((40, 40, 40)), images_of((200, 200, 200))
    made = {"day_to_night": dark[::2], "night_to_day": light[::2]}
    found = diagnostics.translation_colours({"day": light, "night": dark}, made)
    assert set(found) == set(made)
    for direction in made:
        assert found[direction]["translations"] < 0.05 < 1 < found[direction]["originals"]


def test_no_more_than_2000_images_are_read():
    class Counting(Images):
        count = 0

        def read(self, rows):
            self.count += len(rows)
            return super().read(rows)

    images = Counting(images_of((90, 120, 40), count=5000))
    assert diagnostics.mean_colours(images).shape == (2000, 3) and images.count == 2000
