"""Deep Adversarial Attention Alignment for unsupervised domain adaptation, in JAX and Flax.

    result = daaa_jax.run("digits", "runs/digits")
    network = daaa_jax.load_network("runs/digits")
    probabilities = daaa_jax.predict(network, ["three.png"])

The functions are those of `daaa_jax.api`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daaa_jax.api import (
        Result,
        attention_maps,
        load_config,
        load_network,
        predict,
        run,
        translate,
    )

__all__ = ["Result", "attention_maps", "load_config", "load_network", "predict", "run", "translate"]


def __getattr__(name: str) -> Any:
    # Lazy: importing JAX takes seconds, which a misspelt flag should not have to wait for.
    if name == "predict":  # the command's module, which is callable
        return importlib.import_module("daaa_jax.predict")
    if name in __all__:
        return getattr(importlib.import_module("daaa_jax.api"), name)
    raise AttributeError(f"module 'daaa_jax' has no attribute {name!r}")
