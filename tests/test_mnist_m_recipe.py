"""The recipe of MNIST-M: patches of photos, inverted where the digit is."""

import numpy as np
import pytest

from daaa_jax.data import mnist_m_recipe, randomness


def blend(digits: np.ndarray, photos: list[np.ndarray], seed: int) -> np.ndarray:
    return mnist_m_recipe.blend(digits, photos, randomness.generator(seed, "test"))


def make_photos() -> list[np.ndarray]:
    """Two photos whose colours say (row, column, photo), so that a patch can be found."""
    photos = []
    for number, (height, width) in enumerate(((40, 50), (33, 64))):
        rows, columns = np.mgrid[:height, :width]
        photos.append(np.stack([rows, columns, np.full_like(rows, number)], -1).astype(np.uint8))
    return photos


def make_digits(count: int) -> np.ndarray:
    """A white bar that leaves the first row and column free, uint8 `[N,32,32]`."""
    digits = np.zeros((count, 32, 32), np.uint8)
    digits[:, 10:22, 12:18] = 255
    return digits


def test_background_is_a_patch_of_one_photo_and_the_stroke_is_its_negative():
    photos, digits = make_photos(), make_digits(50)
    for image, digit in zip(blend(digits, photos, seed=0), digits, strict=True):
        top, left, number = image[0, 0]
        patch = photos[number][top : top + 32, left : left + 32]
        np.testing.assert_array_equal(image, np.where(digit[..., None] > 0, 255 - patch, patch))


def test_every_photo_and_every_position_is_used():
    corners = blend(make_digits(2000), make_photos(), seed=0)[:, 0, 0]
    first, second = corners[corners[:, 2] == 0], corners[corners[:, 2] == 1]
    assert abs(len(first) - len(second)) < 200
    assert set(first[:, 0]) == set(range(9)) and set(first[:, 1]) == set(range(19))
    assert set(second[:, 0]) == set(range(2)) and set(second[:, 1]) == set(range(33))


def test_a_grey_pixel_inverts_the_patch_wholly():
    digits = make_digits(20)
    grey = np.where(digits > 0, 3, 0).astype(np.uint8)
    np.testing.assert_array_equal(
        blend(grey, make_photos(), seed=0), blend(digits, make_photos(), seed=0)
    )


def test_grey_and_rgb_digits_blend_alike():
    digits = make_digits(5)
    rgb = np.repeat(digits[..., None], 3, axis=-1)
    grey_blend = blend(digits, make_photos(), seed=1)
    np.testing.assert_array_equal(blend(rgb, make_photos(), seed=1), grey_blend)


def test_same_seed_gives_the_same_images_and_another_does_not():
    first = blend(make_digits(20), make_photos(), seed=0)
    np.testing.assert_array_equal(blend(make_digits(20), make_photos(), seed=0), first)
    assert (blend(make_digits(20), make_photos(), seed=1) != first).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("photos", [[], [np.zeros((31, 60, 3), np.uint8)]])
def test_no_photo_or_one_smaller_than_a_digit_is_refused(photos):
    with pytest.raises(ValueError, match="32x32"):
        blend(make_digits(1), photos, seed=0)
