"""Adversarial training in one update: the reversed gradient, and the ramp of its weight.

Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def ramp(progress: Array) -> Array:
    """A penalty's weight, `2 / (1 + exp(-10 p)) - 1`: from 0 to nearly 1."""
    return 2 / (1 + jnp.exp(-10 * progress)) - 1


@jax.custom_vjp
def reverse_gradient(tree: Any, factor: Array) -> Any:
    """Identity whose gradient is multiplied by `-factor`.

    A loss of the result is minimised by the parameters after this function and maximised by those
    before it (Eq. 15).
    """
    return tree


def _backward(factor, gradient):
    return jax.tree.map(lambda g: -factor * g, gradient), jnp.zeros_like(factor)


reverse_gradient.defvjp(lambda tree, factor: (tree, factor), _backward)
