"""Which PRNG keys a computation draws from, and whether any two of the draws are the same."""

import itertools
from collections.abc import Callable

import jax
import numpy as np

# Without `normal`: Flax asks initialisers for shapes while a module is applied.
_SAMPLERS = ("bernoulli", "permutation", "randint", "uniform")


def assert_drawn_once(monkeypatch, compute: Callable[[], object]) -> None:
    """Fails where `compute` draws from a key twice, or from one that another draw splits.

    A sampler may split its key: `split(key)[1]` and `fold_in(key, 1)` are the same. `compute` is
    traced, and only its keys are computed.
    """
    keys = []

    def recorded(sampler):
        def draw(key, *arguments, **named):
            keys.append(key)
            return sampler(key, *arguments, **named)

        return draw

    for name in _SAMPLERS:
        monkeypatch.setattr(jax.random, name, recorded(getattr(jax.random, name)))

    @jax.jit
    def consumed():
        keys.clear()
        compute()
        families = [(key[None], *(jax.random.split(key, n) for n in (2, 3, 4))) for key in keys]
        return [[jax.random.key_data(part) for part in family] for family in families]

    families = [
        {tuple(row) for part in family for row in np.asarray(part).tolist()}
        for family in consumed()
    ]
    assert len(families) > 1
    for one, other in itertools.combinations(families, 2):
        assert not one & other, "a key is drawn from twice"
