"""Messages: numbers with their nouns."""

import pytest

from daaa_jax.errors import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "image", "2 images"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
    ],
)
def test_noun_agrees_with_its_number(number, noun, text):
    assert counted(number, noun) == text
